"""The matched budget: shares in whole epochs, and the least that is enough."""

import re
from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import check, recipes
from pipeline.errors import InputError
from pipeline.params import Classification, Rounds
from pipeline.training.budget import Budget, apportion, one_or_list, passes_of, recorded_training
from tests.recipes.test_contract import METHODS
from tests.recipes.test_verification_contract import METHODS as VERIFYING
from tests.test_params import DEFAULT

BLOCKS_OF = METHODS | {f"{name} of pairs": block for name, block in VERIFYING.items()}
ALL = {name: recipes.of(block) for name, block in BLOCKS_OF.items()}
EPOCHS = {name: recipe for name, recipe in ALL.items() if recipe.epochs_in_all()}
BLOCKS = 4


def budget(passes, of_pairs=1.0, of_classes=1.0):
    return Budget(
        passes, "mine", BLOCKS, lambda settings: of_pairs, lambda settings, per_class: of_classes
    )


def passes_in_all(recipe, of_pairs, of_classes):
    """Passes of a breakdown's or a Siamese network's epochs, counted phase by phase."""
    if recipe.recipe == "siamese":
        return of_pairs * recipe.epochs
    if not isinstance(recipe, recipes.Breakdown):
        return recipe.epochs_in_all()
    encoder = 0
    for epochs, (_, loss) in zip(
        recipe.encoder.epochs_of_parts(), recipe.encoder.losses(), strict=True
    ):
        by_class = recipe.encoder.per_class and loss.on == "images"
        encoder += epochs * (of_classes if by_class else 1)
    heads = recipe.head.epochs + getattr(getattr(recipe.head, "release", None), "epochs", 0)
    return encoder + recipe.encoder.keep * heads * (of_pairs if recipe.head.pairs else 1)


def default(passes=None, kind="own"):
    params = check.load(DEFAULT, files=False)
    training = params.training.model_copy(update={"passes": passes})
    compare = params.compare.model_copy(update={"budget": kind})
    return params.model_copy(update={"training": training, "compare": compare})


weights = st.lists(st.integers(1, 200), min_size=1, max_size=6)


@given(weights, st.integers(0, 500))
def test_shares_sum_to_the_total_and_are_within_one_of_their_quotas(given_weights, more):
    total = sum(given_weights) + more  # so that no quota is below one
    found = apportion(total, given_weights)
    assert sum(found) == total
    for share, weight in zip(found, given_weights, strict=True):
        assert abs(share - Fraction(total * weight, sum(given_weights))) < 1


@given(weights, st.data())
def test_no_share_is_below_its_least(given_weights, data):
    least = data.draw(st.lists(st.integers(1, 9), min_size=len(given_weights),
                               max_size=len(given_weights)))  # fmt: skip
    total = sum(least) + data.draw(st.integers(0, 50))
    found = apportion(total, given_weights, least)
    assert sum(found) == total
    assert all(share >= low for share, low in zip(found, least, strict=True))


@pytest.mark.parametrize(
    ("total", "asked", "least", "found"),
    [
        (120, [60, 60], None, [60, 60]),
        (7, [1, 1], None, [4, 3]),  # of equal remainders the earlier
        (10, [3, 2, 1], None, [5, 3, 2]),
        (10, [98, 1, 1], None, [8, 1, 1]),
        (10, [98, 1, 1], [1, 1, 4], [5, 1, 4]),
        (3, [5, 5, 5], None, [1, 1, 1]),
    ],
)
def test_shares_by_hand(total, asked, least, found):
    assert apportion(total, asked, least) == found


@pytest.mark.parametrize(
    ("total", "asked", "least", "costs", "found"),
    [
        (7, [60], [3], [1.6], [4]),  # 6.4 is nearer than 8
        (7, [60], [5], [1.6], [5]),
        (13, [1, 1], [1, 1], [1.6, 1], [5, 5]),
        (12, [1, 1], [1, 1], [1.6, 1], [5, 4]),  # 4 and 5 would be 11.4
        (15, [1, 2], [1, 1], [2.5, 2.5], [2, 4]),
        (5, [1], [1], [2], [2]),  # as far as 3: the smaller
        (1, [1, 1], [1, 1], [1.6, 1], [1, 1]),
    ],
)
def test_shares_of_dear_epochs_by_hand(total, asked, least, costs, found):
    assert apportion(total, asked, least, costs) == found


costly = st.lists(
    st.tuples(st.integers(1, 200), st.integers(1, 5), st.integers(8, 32)), min_size=1, max_size=5
)


@given(costly, st.integers(1, 300))
def test_no_epoch_more_or_less_comes_nearer_to_the_total(phases, total):
    asked, least, eighths = (list(of) for of in zip(*phases, strict=True))
    costs = [n / 8 for n in eighths]  # exact in binary
    found = apportion(total, asked, least, costs)
    assert all(share >= low for share, low in zip(found, least, strict=True))
    off = sum(share * cost for share, cost in zip(found, costs, strict=True)) - total
    for share, low, cost in zip(found, least, costs, strict=True):
        assert abs(off + cost) >= abs(off)
        assert share == low or abs(off - cost) >= abs(off)


def test_equal_epochs_are_one_number():
    assert one_or_list([3, 3]) == 3 and one_or_list([3]) == 3 and one_or_list([3, 2]) == [3, 2]


@pytest.mark.parametrize("name", EPOCHS)
@pytest.mark.parametrize("passes", [20, 41, 1000])
def test_all_epochs_together_are_the_passes(name, passes):
    found = EPOCHS[name].matched(budget(passes))
    assert found.epochs_in_all() == passes
    assert recipes.of(found.model_dump()) == found  # its keys still go together
    in_fives = EPOCHS[name].matched(budget(passes, 5.0)).model_dump()
    if EPOCHS[name].recipe == "siamese":
        assert in_fives["epochs"] == round(passes / 5)
    elif EPOCHS[name].task == "verification":
        assert in_fives["head"]["epochs"] == pytest.approx(
            found.model_dump()["head"]["epochs"] / 5, abs=0.5
        )
        assert in_fives["encoder"] == found.model_dump()["encoder"]


def test_the_default_methods_are_matched_to_120_passes_as_they_stand():
    params = default()
    for method, block in params.methods.items():
        recipe = recipes.of(block)
        assert recipe.matched(budget(120)) == recipe, method


def test_what_is_solved_in_closed_form_stays():
    for name in ALL.keys() - EPOCHS.keys():
        assert ALL[name].matched(budget(1)) == ALL[name]


@pytest.mark.parametrize(("one", "dear"), [(1.0, 1.0), (3.7, 1.0), (1.0, 1.6), (3.7, 0.8)])
@pytest.mark.parametrize("name", EPOCHS)
def test_too_few_passes_name_the_least_that_are_enough(name, one, dear):
    with pytest.raises(InputError) as error:
        EPOCHS[name].matched(budget(0, one, dear))
    least = int(re.search(r"give (\d+) or more", str(error.value))[1])
    EPOCHS[name].matched(budget(least, one, dear))
    with pytest.raises(InputError, match=f"methods.mine, .* give {least} or more"):
        EPOCHS[name].matched(budget(least - 1, one, dear))


@pytest.mark.parametrize("passes", [13, 50, 120])
@pytest.mark.parametrize("dear", [0.8, 1.28, 1.6])
@pytest.mark.parametrize("name", EPOCHS)
def test_dear_epochs_are_fewer_and_the_whole_as_near_as_heads_allow(name, dear, passes):
    for one in (1.0, 1.7):
        found = EPOCHS[name].matched(budget(passes, one, dear))
        keep = getattr(getattr(found, "encoder", None), "keep", 1)
        assert abs(passes_in_all(found, one, dear) - passes) <= keep * one / 2 + 1e-9


def test_batches_by_class_cost_the_parts_whose_losses_take_images():
    block = METHODS["breakdown_parts"]
    losses = [{"name": "supcon"}, {"name": "contrastive"}]
    encoder = block["encoder"] | {"loss": losses, "per_class": 4}
    recipe = recipes.of(block | {"encoder": encoder})
    found = recipe.matched(budget(52, of_classes=1.6))
    assert (found.encoder.epochs, found.head.epochs) == (10, 26)  # 10 * (1.6 + 1) + 26
    assert recipe.matched(budget(52)).encoder.epochs == 13


@pytest.mark.parametrize("dear", [1.0, 1.6])
def test_the_encoder_does_not_hang_on_the_head(dear):
    for name in ("breakdown", "breakdown_supcon", "breakdown_parts"):
        block = METHODS[name]
        encoders = [
            recipes.of(block | {"head": block["head"] | {"epochs": epochs}})
            .matched(budget(50, of_classes=dear))
            .encoder
            for epochs in (1, 7, 300)
        ]
        assert encoders[0] == encoders[1] == encoders[2]


def test_each_kept_encoder_gets_its_head_s_share():
    supcon = EPOCHS["breakdown_supcon"].matched(budget(100))
    assert supcon.encoder.keep == 3
    assert (supcon.encoder.epochs, supcon.head.epochs) == (100 - 3 * 16, 16)
    dear = EPOCHS["breakdown_supcon"].matched(budget(13, of_classes=1.6))
    assert (dear.encoder.epochs, dear.head.epochs) == (4, 2)  # 6.4 and three times 2
    finetuned = EPOCHS["breakdown_finetune"].matched(budget(14))
    assert finetuned.encoder.epochs == 7
    assert (finetuned.head.epochs, finetuned.head.release.epochs) == (5, 2)


def test_rounds_are_the_network_s_blocks_and_resolved():
    recipe = recipes.of({"recipe": "layerwise", "epochs": [1, 3], "lr": [0.1, 0.01]})
    found = recipe.matched(budget(20))
    assert (found.rounds, found.epochs, found.lr) == (BLOCKS, [2, 6, 6, 6], [0.1, 0.01])
    three = recipe.model_copy(update={"rounds": 3}).matched(budget(21))
    assert (three.rounds, three.epochs) == (3, [3, 9, 9])


def test_an_own_budget_has_no_passes_and_a_matched_one_needs_them():
    assert passes_of(default()) is None and passes_of(default(passes=9)) is None
    assert passes_of(default(9, "matched")) == 9
    with pytest.raises(InputError, match=r"^params.yaml: training.passes: is null, but"):
        passes_of(default(None, "matched"))


class Twice(recipes.Baseline, Classification):
    """Two phases of one block, of which ``matched`` knows nothing."""

    recipe: Literal["twice"]


class InRounds(recipes.Baseline, Rounds):
    """Rounds, of which ``epochs_in_all`` knows nothing either."""

    recipe: Literal["in_rounds"]


class Shared(Twice):
    """The same, where it is known."""

    def matched(self, budget):
        first, _ = budget.share([self.epochs, self.epochs])
        return self.model_copy(update={"epochs": first})


def test_a_recipe_that_does_not_say_how_it_is_matched_is_refused_by_name():
    asked = {"recipe": "twice", "epochs": 60, "lr": 0.1}
    with pytest.raises(InputError) as error:
        Twice(**asked).matched(budget(20))
    said = str(error.value)
    assert said.startswith("params.yaml: methods.mine.recipe: twice does not say how a matched ")
    assert "define matched in pipeline/recipes/twice.py" in said and "\n" not in said
    assert InRounds(recipe="in_rounds", epochs=[2, 3], lr=0.1).unmatched()
    assert Shared(**asked).matched(budget(20)).epochs == 10
    assert all(recipe.unmatched() is None for recipe in [*ALL.values(), Shared(**asked)])


@pytest.mark.parametrize("kind", ["own", "matched"])
def test_such_a_recipe_is_refused_before_anything_runs(kind, tmp_path, monkeypatch):
    (tmp_path / "two_phases.py").write_text(
        "from typing import Literal\n"
        "from pipeline.params import Classification\n"
        "from pipeline.recipes.base import Baseline\n"
        "class TwoPhases(Baseline, Classification):\n"
        "    recipe: Literal['two_phases']\n"
    )
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    text = DEFAULT.read_text(encoding="utf-8")
    text = text.replace("recipe: scratch", "recipe: two_phases").replace(
        "budget: own", "budget: " + kind
    )
    text = text.replace("passes: null", "passes: 20")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    if kind == "own":
        assert check.load(tmp_path / "params.yaml", files=False).compare.budget == "own"
        return
    line = 1 + text.splitlines().index(next(of for of in text.splitlines() if "two_phases" in of))
    with pytest.raises(InputError, match=r"methods.scratch.recipe: two_phases does not") as error:
        check.load(tmp_path / "params.yaml", files=False)
    assert str(error.value).startswith(f"{tmp_path / 'params.yaml'}:{line}: ")


def test_a_record_has_the_passes_where_they_count():
    assert "passes" not in recorded_training(default(passes=9))
    assert recorded_training(default(9, "matched"))["passes"] == 9
