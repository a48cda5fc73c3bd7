#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: host_certificate
short_description: A host's key pair, and the certificate that the platform's CA signed for it
description:
  - Makes the host's key where there is none. The key never leaves the host.
  - Without O(certificate), compares the certificate in place with what is wanted (names, CA, key, validity) and returns
    a signing request where it no longer serves.
  - With O(certificate), puts it, the CA and a bundle (certificate and key, for HAProxy) in place.
options:
  directory:
    description: Where C(ca.crt), C(host.crt), C(host.key) and C(host.pem) are.
    type: path
    required: true
  group:
    description: Group that may read the key; made when missing.
    type: str
    required: true
  common_name:
    description: Subject of the certificate.
    type: str
    required: true
  names:
    description: DNS names and addresses of the certificate.
    type: list
    elements: str
    required: true
  ca:
    description: The CA's certificate, PEM.
    type: str
    required: true
  renew_days:
    description: Renew a certificate that is valid for fewer days than this.
    type: int
    required: true
  certificate:
    description: The certificate that the CA signed, PEM.
    type: str
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Ask for a certificate where one is needed
  host_certificate: &certificate
    directory: /etc/devmentor/tls
    group: devmentor-tls
    common_name: pg1
    names: [pg1, 10.0.0.11]
    ca: "{{ vault_ca_cert }}"
    renew_days: 30
  register: pki_request
"""

RETURN = r"""
request:
  description: Signing request (PEM) where a certificate is needed; empty where the one in place serves.
  returned: always
  type: str
reasons:
  description: Why a certificate is needed.
  returned: always
  type: list
  elements: str
changed_paths:
  description: What was (or would be) changed, with the reason.
  returned: always
  type: list
  elements: str
"""

import datetime
import grp
import os
import tempfile
import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.devmentor.files import Attributes, file_reasons, read_current

try:
    from ansible.module_utils.devmentor.certificates import (
        CertificateError,
        Wanted,
        load_certificate,
        load_key,
        new_key,
        reasons_to_renew,
        request,
    )

    IMPORT_ERROR = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()


class Certificate:
    """The files of one host's certificate; collects what changed."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.changed = []
        self.diff = []

    def path(self, name):
        return os.path.join(self.params["directory"], name)

    def read(self, name):
        return read_current(self.path(name)).content

    def group(self):
        try:
            grp.getgrnam(self.params["group"])
        except KeyError:
            self.note(f"group {self.params['group']}", ["missing"])
            if not self.module.check_mode:
                self.module.run_command(["groupadd", "--system", self.params["group"]], check_rc=True)

    def note(self, path, reasons):
        why = ", ".join(reasons)
        self.changed.append(f"{path}: {why}")
        # Reasons only: a diff of these files would show a key.
        self.diff.append({"before_header": path, "after_header": path, "before": "", "after": f"{why}\n"})

    def put(self, name, content, mode):
        group = self.params["group"] if mode != 0o644 else "root"
        path = self.path(name)
        reasons = file_reasons(read_current(path), content, Attributes("root", group, mode))
        if not reasons:
            return
        self.note(path, reasons)
        if self.module.check_mode:
            return
        os.makedirs(self.params["directory"], mode=0o755, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".host-certificate-", dir=self.params["directory"])
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                os.fchown(stream.fileno(), 0, grp.getgrnam(group).gr_gid)
                os.fchmod(stream.fileno(), mode)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def put_all(self, key, certificate):
        """All files of a certificate that serves; also heals modes and a bundle that an interrupted run left old."""
        ca = self.params["ca"].strip().encode() + b"\n"
        certificate = certificate.strip() + b"\n"
        self.put("ca.crt", ca, 0o644)
        self.put("host.key", key, 0o640)
        self.put("host.pem", certificate + key, 0o640)
        # Last: services reload on it.
        self.put("host.crt", certificate, 0o644)

    def run(self):
        wanted = Wanted(self.params["common_name"], tuple(self.params["names"]), self.params["renew_days"])
        ca = load_certificate(self.params["ca"].encode(), "the platform's CA (vault_ca_cert)")
        self.group()
        key = self.read("host.key")
        if key is None:
            key = new_key()
            if not self.params["certificate"]:
                self.put("host.key", key, 0o640)
        now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
        loaded = load_key(key, self.path("host.key"))
        certificate = (self.params["certificate"] or "").encode() or self.read("host.crt")
        if certificate is None:
            reasons = ["there is none"]
        else:
            try:
                have = load_certificate(certificate, self.path("host.crt"))
                reasons = reasons_to_renew(have, loaded, ca, wanted, now)
            except CertificateError as error:
                reasons = [str(error)]
        if self.params["certificate"] and reasons and not self.module.check_mode:
            why = "; ".join(reasons)
            raise CertificateError(f"the certificate just signed does not serve: {why}. Check the CA in vault.yml.")
        if not reasons or self.params["certificate"]:
            self.put_all(key, certificate)
            return "", reasons
        self.note(self.path("host.crt"), reasons)
        return request(loaded, wanted), reasons


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "group": {"type": "str", "required": True},
            "common_name": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "ca": {"type": "str", "required": True},
            "renew_days": {"type": "int", "required": True},
            "certificate": {"type": "str"},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        if module.check_mode:  # a fresh host: base would have installed it
            why = "python3-cryptography is not installed yet"
            module.exit_json(changed=True, request="", reasons=[why], changed_paths=[why])
        msg = missing_required_lib("cryptography") + " (Debian: python3-cryptography)"
        module.fail_json(msg=msg, exception=IMPORT_ERROR)
    certificate = Certificate(module)
    try:
        text, reasons = certificate.run()
    except (CertificateError, OSError) as error:
        module.fail_json(msg=str(error), changed_paths=certificate.changed)
    module.exit_json(
        changed=bool(certificate.changed),
        request=text,
        reasons=reasons,
        changed_paths=certificate.changed,
        diff=certificate.diff,
    )


if __name__ == "__main__":
    main()
