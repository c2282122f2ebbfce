"""The pages of the methods: one for each, all of them named where a reader begins."""

import re
from pathlib import Path

from handful.methods import load_method, method_names

PAGES = Path(__file__).parents[1] / "docs" / "methods"


def test_every_method_has_a_page_and_the_first_page_names_it_under_its_command() -> None:
    parts = re.split(r"^## ", (PAGES / "README.md").read_text(), flags=re.MULTILINE)
    for kind, heading in (("train", "Training"), ("pretrain", "Pre-training")):
        (part,) = (part for part in parts if part.startswith(heading))
        named = set(re.findall(r"^\| \[(\w+)\]\(\1\.md\)", part, flags=re.MULTILINE))
        methods = {name for name in method_names() if load_method(name).METHOD.kind == kind}
        assert named == methods - {"supervised"}  # the control has no page of its own
    for name in method_names():
        assert name == "supervised" or (PAGES / f"{name}.md").is_file()


def test_the_control_names_the_methods_that_use_labels_and_the_health_page_all_that_pretrain() -> None:
    kinds = {name: load_method(name).METHOD for name in method_names()}
    pretraining = {name for name, method in kinds.items() if method.kind == "pretrain"}
    assert len(pretraining) > 10
    control = (PAGES / "supervised_pretrain.md").read_text()
    assert {name for name in pretraining if f"`{name}`" in control} == {
        name for name in pretraining if kinds[name].needs.optional_labels
    }
    health = (PAGES.parent / "health.md").read_text()
    assert {name for name in pretraining if f"`{name}`" in health} == pretraining
