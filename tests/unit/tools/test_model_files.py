"""The lab's model files: the same bytes every time, whole or not there, declared where roles look."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import yaml

from module_utils.devmentor.artifacts import select_artifacts
from tools import models


def test_the_tiny_model_is_the_same_every_time_and_holds_a_long_prompt(tmp_path: Path) -> None:
    models.write_tiny_qwen(tmp_path / "a.gguf")
    models.write_tiny_qwen(tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["qwen3.context_length"].contents() >= 16384
    assert "<tool_call>" in reader.fields["tokenizer.chat_template"].contents()
    head = next(tensor for tensor in reader.tensors if tensor.name == "output.weight").data
    bias = np.array(head)[:, 0]
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert bias[tokens.index("e")] > bias[tokens.index("z")] == bias[tokens.index("<|im_start|>")]


def test_the_byte_alphabet_is_gpt2s() -> None:
    alphabet = models.byte_alphabet()
    assert len(set(alphabet)) == 256
    assert alphabet[ord("A")] == "A"
    assert alphabet[ord(" ")] == "Ġ"
    assert alphabet[ord("\n")] == "Ċ"


@pytest.mark.parametrize(
    ("token", "marked"), [("hello", "\u2581hello"), ("##ing", "ing"), ("[CLS]", "[CLS]"), ("[", "\u2581[")]
)
def test_word_starts_are_marked(token: str, marked: str) -> None:
    assert models.bert_token(token)[0] == marked


def test_bert_tensors_get_llama_cpps_names() -> None:
    assert models.bert_tensor("bert.encoder.layer.5.attention.self.query.weight") == ("blk.5.attn_q", "weight")
    assert models.bert_tensor("embeddings.LayerNorm.bias") == ("token_embd_norm", "bias")
    assert models.bert_tensor("pooler.dense.weight") is None
    with pytest.raises(models.ModelsError, match="decoder"):
        models.bert_tensor("decoder.weight")


def test_an_encoder_is_written_with_its_vocabulary(tmp_path: Path) -> None:
    config = {
        "max_position_embeddings": 8,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
    }
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "run", "##ning"]
    tensors = [
        ("embeddings.word_embeddings.weight", np.ones((7, 4), np.float32)),
        ("embeddings.LayerNorm.bias", np.ones(4, np.float32)),
        ("embeddings.position_ids", np.arange(8)),
    ]
    models.write_minilm(tmp_path / "m.gguf", config, vocabulary, tensors)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["tokenizer.ggml.bos_token_id"].contents() == 2
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {"token_embd.weight": "F16", "token_embd_norm.bias": "F32"}


class Maker:
    """A model whose writing can be counted and made to fail."""

    def __init__(self, inputs: str = "1") -> None:
        self.made = 0
        self.fails = False
        self.model = models.Model("toy", inputs, self.write)

    def write(self, target: Path) -> None:
        self.made += 1
        target.write_bytes(b"half")
        if self.fails:
            raise models.ModelsError("power cut")
        target.write_bytes(f"made from {self.model.inputs}".encode())


def test_a_file_is_made_once_and_again_when_its_inputs_or_its_bytes_differ(tmp_path: Path) -> None:
    store, maker = models.Store(tmp_path), Maker()
    digest, new = store.have(maker.model)
    assert new
    assert store.have(maker.model) == (digest, False)
    (tmp_path / "toy.gguf").write_bytes(b"damaged")
    assert store.have(maker.model) == (digest, True)
    other = Maker("2")
    assert store.have(other.model)[0] != digest
    assert (maker.made, other.made) == (2, 1)


def test_a_failure_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    store = models.Store(tmp_path)
    store.have(Maker("1").model)
    before = (tmp_path / "toy.gguf").read_bytes()
    failing = Maker("2")
    failing.fails = True
    with pytest.raises(models.ModelsError):
        store.have(failing.model)
    assert (tmp_path / "toy.gguf").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models.json", "toy.gguf"]


def test_a_damaged_record_means_making_again(tmp_path: Path) -> None:
    store, maker = models.Store(tmp_path), Maker()
    store.have(maker.model)
    (tmp_path / "models.json").write_text("{")
    assert store.have(maker.model)[1]
    assert json.loads((tmp_path / "models.json").read_text())["toy"]["version"] == maker.model.version


def test_declarations_are_artefacts_that_can_be_fetched(tmp_path: Path) -> None:
    digest = "ab" * 32
    text = models.declarations({"toy": (Maker().model, digest)})
    declared = yaml.safe_load(text)["devmentor_artifacts_generated"]
    (artifact,) = select_artifacts(declared, ["toy"])
    assert (artifact.sha256, str(artifact.sources[0])) == (digest, "file:models/toy.gguf")


def test_a_missing_wheel_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = tmp_path / "artifacts.yml"
    artifacts.write_text("devmentor_artifacts: {}\n")
    arguments = ["--artifacts", str(artifacts), "--inventory", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert models.main(arguments) == 1
    assert "minilm-wheel" in capsys.readouterr().err
