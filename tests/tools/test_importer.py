from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.text.samples import DATA, SAMPLES, write_sample_tokenizer
from tests.tools import tiny_gguf
from youtu_llm.errors import ModelError, ResourceError
from youtu_llm.ops import awq
from youtu_llm.text.tokenizer import Tokenizer
from youtu_llm.tools import importer, model_dir
from youtu_llm.tools.importer import import_model

GATE = "model.layers.1.mlp.gate_proj"


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_gguf.weights())


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory, gguf_file: Path) -> Path:
    """The same model as a Hugging Face directory."""
    models_dir = tmp_path_factory.mktemp("hf")
    return import_model(gguf_file, models_dir=models_dir, quantize=False, dtype="float32")


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text("utf-8"))


def edit_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | changes), "utf-8")


def test_unquantised_is_the_same_model_to_transformers(hf_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(hf_dir)
    written = tiny_gguf.weights()
    gate = model.model.layers[1].mlp.gate_proj.weight
    assert np.array_equal(gate.detach().numpy(), written["blk.1.ffn_gate.weight"])
    assert sum(p.numel() for p in model.parameters()) == sum(w.size for w in written.values())
    assert model.config.rms_norm_eps == 1e-6
    assert model.config.rope_parameters["rope_theta"] == 1e6
    tokenizer = AutoTokenizer.from_pretrained(hf_dir)
    ids = tokenizer.apply_chat_template(
        DATA["chat"]["messages"], add_generation_prompt=True, return_dict=False
    )
    assert ids == DATA["chat"]["ids"]
    assert Tokenizer.load(hf_dir).encode(SAMPLES["code"]["text"]) == SAMPLES["code"]["ids"]
    assert model.generation_config.eos_token_id == [
        DATA["tokens"].index(token) for token in ("<|im_end|>", "<|endoftext|>")
    ]


@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_quantised_tensors_are_the_awq_layout_of_the_weights(
    kind: str, gguf_file: Path, hf_dir: Path, tmp_path: Path
) -> None:
    source = {"gguf": gguf_file, "hf": hf_dir}[kind]
    folder = import_model(source, models_dir=tmp_path, name="tiny")
    tensors = load_file(folder / "model.safetensors")
    written = tiny_gguf.weights()
    expected = awq.quantize_rtn(torch.from_numpy(written["blk.1.ffn_gate.weight"]))
    for part, values in zip(("qweight", "qzeros", "scales"), expected, strict=True):
        assert torch.equal(tensors[f"{GATE}.{part}"], values)
    table = tensors["model.embed_tokens.weight"].float()
    table *= tensors["model.embed_tokens.scales"].float()[:, None]
    original = torch.from_numpy(written["token_embd.weight"])
    assert (table - original).norm() < 0.01 * original.norm()
    norm = tensors["model.norm.weight"]
    assert torch.equal(norm, torch.from_numpy(written["output_norm.weight"]).half())
    assert "lm_head.weight" not in tensors
    assert config_of(folder)["quantization_config"] == {
        "quant_method": "awq_int8",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
        "int8_modules": ["model.embed_tokens"],
    }
    info = model_dir.verify(folder, full=True)
    assert (info.name, info.quantization) == ("tiny", "awq_int8")
    assert info.architecture == "Qwen2ForCausalLM"


def test_a_head_stored_twice_is_one_table_and_the_finer_one(tmp_path: Path) -> None:
    tensors = tiny_gguf.weights()
    table = tensors["token_embd.weight"]
    kinds = {
        "token_embd.weight": gguf.GGMLQuantizationType.Q5_0,
        "output.weight": gguf.GGMLQuantizationType.Q8_0,
    }
    source = tmp_path / "twice.gguf"
    tiny_gguf.write(source, tensors | {"output.weight": table}, quantized=kinds)
    folder = import_model(source, models_dir=tmp_path, quantize=False, dtype="float32")
    kept = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    finer = gguf.quants.dequantize(
        gguf.quants.quantize(table, kinds["output.weight"]), kinds["output.weight"]
    )
    assert np.array_equal(kept.numpy(), finer)
    assert config_of(folder)["tie_word_embeddings"] is True


def test_a_head_of_its_own_stays(tmp_path: Path) -> None:
    tensors = tiny_gguf.weights()
    head = np.random.default_rng(8).normal(0, 0.05, tensors["token_embd.weight"].shape)
    source = tmp_path / "untied.gguf"
    tiny_gguf.write(source, tensors | {"output.weight": head.astype(np.float32)})
    folder = import_model(source, models_dir=tmp_path)
    config = config_of(folder)
    assert config["tie_word_embeddings"] is False
    assert config["quantization_config"]["int8_modules"] == ["model.embed_tokens", "lm_head"]
    assert load_file(folder / "model.safetensors")["lm_head.weight"].dtype == torch.int8


def test_awq_is_taken_as_it_is(gguf_file: Path, tmp_path: Path) -> None:
    ours = import_model(gguf_file, models_dir=tmp_path, name="ours")
    quantization = config_of(ours)["quantization_config"]
    edit_config(ours, quantization_config={**quantization, "quant_method": "awq"})
    copy = import_model(ours, models_dir=tmp_path, name="copy")
    assert (copy / "model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()
    assert model_dir.verify(copy, full=True).quantization == "awq"
    with pytest.raises(ModelError, match="leave out --dtype"):
        import_model(ours, models_dir=tmp_path, name="plain", quantize=False)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv' is not supported"),
        ({"quant_method": "awq", "version": "GEMV_FAST"}, "version 'gemv_fast'"),
        ({"quant_method": "awq", "version": "marlin"}, "version 'marlin'"),
        ({"quant_method": "awq", "bits": 8}, "bits 8"),
        ({"quant_method": "awq", "group_size": 64}, "group_size 64"),
        ({"quant_method": "awq", "zero_point": False}, "zero_point False"),
        ({"quant_method": "gptq", "bits": 4}, "quantised by 'gptq'"),
    ],
)
def test_other_quantisations_are_refused_by_name(
    hf_dir: Path, tmp_path: Path, quantization: dict[str, Any], words: str
) -> None:
    source = Path(shutil.copytree(hf_dir, tmp_path / "source"))
    edit_config(source, quantization_config=quantization)
    with pytest.raises(ModelError, match=words):
        import_model(source, models_dir=tmp_path / "models")
    assert model_dir.list_models(tmp_path / "models") == []


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _narrow(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{GATE}.weight"] = torch.zeros(256, 100)
    save_file(tensors, folder / "model.safetensors")


def _poison(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e9
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: edit_config(folder, architectures=["MambaForCausalLM"]), "MambaForC"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read as safetensors"),
        (_truncate, "cannot be read as safetensors"),
        (_narrow, "gate_proj is 100 x 256: INT4 needs inputs in groups of 128"),
        (_poison, r"model\.norm\.weight holds values too large for float16"),
    ],
)
def test_a_directory_that_is_not_understood_is_refused(
    hf_dir: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    source = Path(shutil.copytree(hf_dir, tmp_path / "source"))
    damage(source)
    with pytest.raises(ModelError, match=words):
        import_model(source, models_dir=tmp_path / "models")
    assert model_dir.list_models(tmp_path / "models") == []


def test_a_gguf_that_is_not_understood_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    whole = gguf_file.read_bytes()
    for length in (100, len(whole) // 4, len(whole) - 5000):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelError, match="is not a GGUF file, or cut short"):
            import_model(tmp_path / "cut.gguf", models_dir=tmp_path)
    other = tmp_path / "other.gguf"
    tiny_gguf.write(other, tiny_gguf.weights(), architecture="mamba")
    with pytest.raises(ModelError, match="architecture 'mamba' is not supported"):
        import_model(other, models_dir=tmp_path)
    extra = tmp_path / "extra.gguf"
    tiny_gguf.write(extra, tiny_gguf.weights(**{"blk.0.ssm.weight": np.zeros(2, np.float32)}))
    with pytest.raises(ModelError, match=r"tensor blk\.0\.ssm\.weight is not known"):
        import_model(extra, models_dir=tmp_path)
    with pytest.raises(ModelError, match="'gpt2' / 'gpt-4o' is not supported"):
        write_sample_tokenizer(tmp_path, pre="gpt-4o")
    with pytest.raises(ModelError, match="does not exist"):
        import_model(tmp_path / "nothing.gguf", models_dir=tmp_path)


def test_a_sound_model_is_not_replaced_and_a_broken_one_is(gguf_file: Path, tmp_path: Path) -> None:
    folder = import_model(gguf_file, models_dir=tmp_path)
    assert folder == tmp_path / "tiny"
    with pytest.raises(ModelError, match="exists: remove it first"):
        import_model(gguf_file, models_dir=tmp_path)
    (folder / "config.json").unlink()
    assert not importer.is_sound(folder)
    model_dir.verify(import_model(gguf_file, models_dir=tmp_path), full=True)
    with pytest.raises(ModelError, match="cannot be a model's name"):
        import_model(gguf_file, models_dir=tmp_path, name="../elsewhere")


def test_verify_names_the_file_and_both_sums(gguf_file: Path, tmp_path: Path) -> None:
    folder = import_model(gguf_file, models_dir=tmp_path)
    with pytest.raises(ModelError, match="there is no model at"):
        model_dir.verify(tmp_path / "none")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    right = model_dir.sha256_of(path)
    data[-1] ^= 1
    path.write_bytes(data)
    model_dir.verify(folder)
    with pytest.raises(ModelError, match=rf"model\.safetensors is corrupt: .*{right}"):
        model_dir.verify(folder, full=True)
    path.write_bytes(data[:-1])
    with pytest.raises(ModelError, match=rf"has {len(data) - 1} bytes and should have {len(data)}"):
        model_dir.verify(folder)


def test_one_at_a_time_and_only_where_there_is_room(tmp_path: Path) -> None:
    with (
        model_dir.workspace(tmp_path, "tiny"),
        pytest.raises(ResourceError, match="another process is pulling or importing tiny"),
        model_dir.workspace(tmp_path, "tiny"),
    ):
        pass
    with pytest.raises(ResourceError, match=r"needs 1000000000\.00 GB .* are free"):
        model_dir.require_disk(tmp_path, 10**18, "it")
