"""The ledger's sums, limits and files."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from diptych.data.reading.ledger import Ledger, RejectFile
from diptych.data.reading.rows import Reject
from diptych.errors import DataError, TooManyRejects


def reject(number: int, error: str = "EmptyImage") -> Reject:
    return Reject(f"data.json:{number}", str(number), error, f"fault {number}", "row")


def filled(used: int, rejected: int) -> Ledger:
    ledger = Ledger()
    for _ in range(used):
        ledger.read()
        ledger.use(3)
    for number in range(rejected):
        ledger.read()
        ledger.reject(reject(number))
    return ledger


def test_a_lost_sample_is_found():
    ledger = filled(5, 2)
    ledger.check()
    ledger.read()
    with pytest.raises(DataError, match="8 samples read, but 7 ended"):
        ledger.check()


def test_limit():
    filled(99, 1).enforce(0.01)
    filled(0, 3).enforce(1.0)
    Ledger().enforce(0.0)
    with pytest.raises(TooManyRejects) as error:
        filled(98, 2).enforce(0.01)
    text = str(error.value)
    assert "2 of 100" in text and "EmptyImage: 2" in text and "data.json:0: fault 0" in text
    assert "--fix" in text and "max_reject_share" in text


def test_plain_data_and_file(tmp_path):
    ledger = filled(5, 8)
    ledger.read()
    ledger.truncate(7, 2)
    values = ledger.to_dict()
    assert values["rejected"] == {"EmptyImage": 8} and len(values["examples"]) == 5
    assert values["truncated"] == {"samples": 1, "tokens": 7}
    assert (values["read"], values["used"], values["supervised_tokens"]) == (14, 5, 17)
    assert Ledger.from_dict(json.loads(json.dumps(values))) == ledger
    ledger.save(tmp_path / "ledger.json")
    assert Ledger.load(tmp_path / "ledger.json") == ledger


def test_merge_adds_everything():
    ledger, other = filled(3, 2), filled(4, 9)
    other.read()
    other.reject(reject(1, "UnsafePath"))
    ledger.merge(other)
    assert (ledger.num_read, ledger.num_used, ledger.num_rejected) == (19, 7, 12)
    assert ledger.rejected["EmptyImage"].count == 11
    assert len(ledger.rejected["EmptyImage"].examples) == 5
    ledger.check()


def test_training_steps():
    ledger = Ledger()
    error = {"error": "TruncatedImage", "message": "cut", "where": None, "fix": None}
    step = SimpleNamespace(
        used=["a", "b"], truncated=[("b", 4)], rejected=[("c", error)], num_targets=30,
        notes={"pictures seen more coarsely": 2},
    )  # fmt: skip
    ledger.add(step)
    ledger.check()
    assert (ledger.num_read, ledger.num_used, ledger.num_truncated) == (3, 1, 1)
    assert (ledger.num_rejected, ledger.num_cut_tokens, ledger.num_supervised_tokens) == (1, 4, 30)
    assert ledger.notes == {"pictures seen more coarsely": 2}
    assert Ledger.from_dict(ledger.to_dict()) == ledger


def test_table_escapes_what_rows_say():
    from rich.console import Console

    ledger = filled(1, 0)
    ledger.read()
    ledger.reject(Reject("a[/b]", None, "FormatError", "[bold]not markup[/bold]"))
    console = Console(record=True, width=120, file=open("/dev/null", "w"))
    console.print(ledger.table(title="[x]"))
    assert "[bold]not markup[/bold]" in console.export_text()


def test_reject_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rejects.jsonl"
    with RejectFile(path) as rejects:
        rejects.add(reject(1))
        assert not path.exists()
    assert json.loads(path.read_text())["row"] == "row"
    with pytest.raises(RuntimeError), RejectFile(path) as rejects:
        rejects.add(reject(2))
        raise RuntimeError
    assert json.loads(path.read_text())["id"] == "1"
    with RejectFile(path):
        pass
    assert not path.exists() and not list(tmp_path.iterdir())


def test_two_samples_of_one_step_may_share_an_id():
    """Ids are unique within a data set; a step may hold samples of several."""
    from diptych.data.batching.collate import Prepared

    ledger = Ledger()
    ledger.add(Prepared(used=["1", "1", "2"], truncated=[("1", 7)]))
    assert (ledger.num_read, ledger.num_used, ledger.num_truncated) == (3, 2, 1)
    assert ledger.num_cut_tokens == 7
    ledger.check()
