"""The recipes that come with handful: each resolves completely, for the method and network it names."""

import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from handful.data.plan import NetworkPlan, Normalisation, Plan
from handful.errors import UsageError
from handful.methods import load_method, method_names
from handful.training.recipe import resolve
from handful.training.run import pretrain, train
from handful.training.settle import find_recipe
from handful.training.start import build_method

RECIPES = sorted(Path(str(resources.files("handful") / "recipes")).glob("*.yaml"))


def test_there_are_recipes_and_they_are_found_by_name() -> None:
    assert RECIPES
    for file in RECIPES:
        assert find_recipe(Path(file.stem)) == file


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_resolves_and_says_where_its_values_are_from(file: Path) -> None:
    recipe = resolve(None, file=file, default_steps=10)
    assert recipe.name in method_names()
    assert file.stem.startswith(recipe.name) or recipe.name in file.read_text()
    assert load_method(recipe.name).METHOD.paper
    again = resolve(None, file=file, default_steps=10).as_dict()
    assert again == recipe.as_dict()
    text = file.read_text()
    assert text.startswith("#"), "a recipe starts with what it repeats"
    assert "http" in text


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_network_and_the_method_of_a_recipe_fit_each_other(file: Path) -> None:
    recipe = resolve(None, file=file, default_steps=10)
    dims = recipe.plan.dims or 2
    plan = Plan(
        dims=dims, axes=(2, 1, 0), spacing_mm=(1.5, 1.0, 1.0), patch=(16, 32, 48)[3 - dims :], batch=2,
        channels=(Normalisation(),), label_values=(0, 1, 2), label_names=("background", "a", "b"),
        mirror=(False,) * dims,
        network=NetworkPlan(widths=(4, 6, 8, 10), strides=((2,) * dims,) * 3, kernels=((3,) * dims,) * 4),
    )  # fmt: skip
    parts = [part for part in recipe.stages() if part is not None] if recipe.loop.epochs is None else [recipe]
    assert parts
    for part in parts:
        method, architecture = build_method(part, plan, 0)
        assert architecture["dims"] == dims
        exported = method.exports()
        assert exported.keys() <= {"segmenter", "encoder", "decoder"}
        assert any(
            parameter.requires_grad for module in exported.values() for parameter in module.parameters()
        )


def test_a_recipe_whose_network_does_not_fit_its_method_fails_to_build(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("name: urpc\nnetwork: {preset: mona-vnet}\nplan: {dims: 3}\n")
    with pytest.raises(UsageError, match="levels"):
        test_the_network_and_the_method_of_a_recipe_fit_each_other(file)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pcl_published_acdc", "pcl_published_finetune_acdc"),
        ("pcl_published_chd", "pcl_published_finetune_chd"),
        ("sscl_published_hippocampus", "sscl_published_finetune_hippocampus"),
    ],
)
def test_a_published_training_starts_from_its_pretraining(
    before: str, after: str, phantom_folder: Path, tmp_path: Path
) -> None:
    small = ("network.preset=null", "plan.width=4", "plan.patch=[32,32]")
    options: dict[str, Any] = {"labels": "2", "steps": 1, "device": "cpu", "threads": 1, "quiet": True}
    local = () if "sscl" in before else ("method.batch=2", "method.threshold=0.01")
    run = pretrain(phantom_folder, tmp_path / "a", recipe=Path(before), set_=(*small, *local), **options)
    options |= {"init": run, "plan": run / "plan.yaml", "set_": small}
    done = train(phantom_folder, tmp_path / "b", recipe=Path(after), **options)
    assert "encoder from" in (done / "log.txt").read_text()


def test_the_stages_of_sscl_have_seventy_epochs_each_at_every_budget() -> None:
    """The share beside the steps of 10 and 20 % was once that of 5 %."""
    (file,) = (file for file in RECIPES if file.stem == "sscl_published_hippocampus")
    text = file.read_text()
    share = re.search(r"global_share: ([\d.]+) +# 10 %: ([\d.]+); 20 %: ([\d.]+)", text)
    steps = re.search(r"steps: (\d+) +# 10 %: (\d+); 20 %: (\d+)", text)
    assert share is not None
    assert steps is not None
    for labelled, part, length in zip((7, 15, 31), share.groups(), steps.groups(), strict=True):
        epochs = 70 * math.ceil(156 * 36 / 120), 70 * labelled * 36 // 4
        assert sum(epochs) == int(length)
        assert round(float(part) * int(length)) == pytest.approx(epochs[0], abs=1)
