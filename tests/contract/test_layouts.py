"""Every file in convert/layouts keeps the Layout contract."""

from __future__ import annotations

import inspect

import pytest
import torch

from diptych import parts
from diptych.convert import layout
from diptych.convert.comparison import ExportReport
from diptych.errors import ConfigError, PartNotFound
from diptych.model.architectures.vlm import VlmConfig

NAMES = parts.names("convert.layouts")


@pytest.mark.parametrize("name", NAMES)
def test_offers_the_contract(name):
    found = layout.find(name)
    for method in ("export", "load", "compare", "outputs"):
        wanted = inspect.signature(getattr(layout.Layout, method)).parameters
        own = inspect.signature(getattr(found, method)).parameters
        assert list(own) == list(wanted)[1:], method
    assert parts.describe("convert.layouts")[name]
    assert found.ARCHITECTURE in parts.names("model.architectures")


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(layout.find(n), "KEYS")])
def test_key_rules_lead_there_and_back(name):
    """Renaming to any other column and back gives every name again; others are refused."""
    found = layout.find(name)
    columns = list(found.KEYS[0])
    assert {rule["diptych"].split(".")[0] for rule in found.KEYS} == set(VlmConfig.parts)
    for source in columns:
        tensors = {f"{rule[source]}{n}.weight": torch.zeros(1) for rule in found.KEYS for n in "ab"}
        for target in columns:
            there = found.renamed(tensors, source, target)
            assert len(there) == len(tensors)
            assert found.renamed(there, target, source).keys() == tensors.keys()
    with pytest.raises(ConfigError, match="no place"):
        found.renamed({"elsewhere.weight": torch.zeros(1)}, "diptych", columns[-1])


def test_dashes_and_unknown_names():
    assert layout.find("hf-llava") is layout.find("hf_llava")
    with pytest.raises(PartNotFound, match="gguff"):
        layout.find("gguff")


def test_report_is_plain_data():
    values = ExportReport("x", "Y").to_dict()
    assert {"max_logit_difference", "tokens_equal", "num_cases", "tolerance"} <= values.keys()
