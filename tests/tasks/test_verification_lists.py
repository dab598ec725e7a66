"""The lists of verification, written from small sets of each kind and read back."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.data.pairs import PairList
from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.params_file import parse, plain, read
from pipeline.records import TRIAL_COLUMNS
from pipeline.tasks.verification import lists

ROOT = Path(__file__).parents[2]
LISTED = ("split", *TRIAL_COLUMNS)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").mkdir()
    return tmp_path


def params_of(**changed) -> Params:
    """A params.yaml of verification; ``changed`` by dotted key, ``__`` for the dot."""
    source = read(ROOT / "configs/digits.yaml")
    tree = plain(source.tree) | {"task": "verification"}
    tree["data"]["val_per_class"] = None
    tree["compare"] |= {"shots": ["all"], "seeds": [0, 1]}
    tree["pairs"] |= {"per_image": 4, "episodes": []}
    for key, value in changed.items():
        *path, last = key.split("__")
        place = tree
        for name in path:
            place = place[name]
        place[last] = value
    return parse(Params, tree, source)


def table(sizes, of_split="", groups=None, prefix="c"):
    """Images of classes of the given sizes, one split and perhaps a group for each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    given = [of_split] * len(sizes) if isinstance(of_split, str) else of_split
    return pd.DataFrame(
        {
            "image": [f"{prefix}{of:02}/{k}.png" for k, of in enumerate(labels)],
            "class": [f"{prefix}{of:02}" for of in labels],
            "split": [given[of] for of in labels],
            "group": [groups[of] if groups else "" for of in labels],
        }
    )


def prepare(images, listed=(), copies=(), params=None):
    """Write what stage images leaves behind, with pixels that differ but for ``copies``."""
    images = images.reset_index(drop=True)
    images.insert(0, "row", np.arange(len(images)))
    images.insert(2, "label", np.unique(images["class"], return_inverse=True)[1])
    images.to_csv("prepared/images.csv", index=False)
    pixels = np.zeros((len(images), 1, 2, 2), np.uint8)
    pixels[:, 0, 0] = np.stack(np.divmod(np.arange(len(images)), 256), axis=1)
    for one, other in copies:
        pixels[other] = pixels[one]
    np.save("prepared/images.npy", pixels)
    pd.DataFrame(listed, columns=LISTED).to_csv("prepared/listed.csv", index=False)
    lists.write(params or params_of())
    return images


def summary():
    return json.loads(Path("prepared/summary.json").read_text())


def trials(path="prepared/splits/trials.csv"):
    found = pd.read_csv(path, keep_default_na=False, dtype={"set": str, "episode": str})
    assert list(found) == ["set", "episode", "left", "right", "same"]
    return found


def validation_episodes():
    """The trials of validation episodes; those of pairs must be the pair list."""
    paired = trials("prepared/trials/val.csv")
    listed = pd.read_csv("prepared/pairs/val.csv")
    assert paired[list(listed)].equals(listed)
    assert set(paired["set"]) <= {"pairs"} and (paired["episode"] == "").all()
    return trials("prepared/trials/val_episodes.csv")


def train_rows(shots, seed):
    return pd.read_csv(f"prepared/train/shots-{shots}/seed-{seed}.csv")


def train_pairs(shots, seed):
    return pd.read_csv(f"prepared/pairs/shots-{shots}/seed-{seed}.csv")


def contents():
    return {str(p): p.read_bytes() for p in sorted(Path("prepared").rglob("*")) if p.is_file()}


def check_promises(images, answers=True):
    """Classes of the three splits differ, every list stays in its split, every answer is true."""
    rows = {
        "train": set(train_rows("all", 0)["row"]),
        "val": set(pd.read_csv("prepared/splits/val.csv")["row"]),
        "test": set(pd.read_csv("prepared/splits/test.csv")["row"]),
    }
    of = {name: set(images.loc[sorted(mine), "label"]) for name, mine in rows.items()}
    assert all(rows.values()) and sum(map(len, of.values())) == len(set().union(*of.values()))
    files = {
        "val": [Path("prepared/pairs/val.csv"), Path("prepared/trials/val.csv")],
        "test": [Path("prepared/splits/trials.csv")],
        "train": list(Path("prepared/pairs").glob("shots-*/*.csv")),
    }
    label = images["label"].to_numpy()
    for name, paths in files.items():
        for path in paths:
            listed = pd.read_csv(path)
            assert set(listed["left"]) | set(listed["right"]) <= rows[name], path
            if answers:
                same = label[listed["left"]] == label[listed["right"]]
                assert (listed["same"] == same).all(), path
    for path in Path("prepared/train").rglob("*.csv"):
        listed = pd.read_csv(path)
        assert set(listed["row"]) <= rows["train"]
        assert not answers or (label[listed["row"]] == listed["label"]).all()


def people(count=40, images=4):
    """A set whose splits are to be drawn, with some people of a single image."""
    return table([images, 1, images, images] * (count // 4))


def test_drawn_splits_pairs_and_episodes(capsys):
    kinds = [{"ways": 3}, {"ways": 2, "shots": 2, "count": 7}]
    params = params_of(compare__shots=[2, 3, "all"], pairs__episodes=kinds)
    images = prepare(people(), params=params)
    check_promises(images)
    counts = summary()["splits"]
    assert {name: of["classes"] for name, of in counts.items()} == {
        "train": 20, "val": 8, "test": 12
    }  # fmt: skip
    images_of = {name: of["images"] for name, of in counts.items()}
    assert capsys.readouterr().out == (
        f"prepare: 130 images of 40 classes: {images_of['train']} of 20 to train, "
        f"{images_of['val']} of 8 to val, {images_of['test']} of 12 to test\n"
    )
    found = trials()
    assert list(dict.fromkeys(found["set"])) == ["pairs", "3_way_1_shot", "2_way_2_shot"]
    assert (found.loc[found["set"] == "pairs", "episode"] == "").all()
    assert summary()["trials"]["3_way_1_shot"] == {"episodes": 100, "queries": 300, "trials": 900}
    assert summary()["trials"]["2_way_2_shot"] == {"episodes": 7, "queries": 14, "trials": 56}
    validation = validation_episodes()
    assert Counter(validation["set"]) == {"3_way_1_shot": 900, "2_way_2_shot": 56}
    for _, episode in found[found["set"] == "3_way_1_shot"].groupby("episode"):
        assert len(set(episode["left"])) == len(set(episode["right"])) == 3
        assert not set(episode["left"]) & set(episode["right"])
        assert (episode.groupby("left")["same"].sum() == 1).all()


def test_shots_are_a_prefix_of_more_and_images_a_class_at_most():
    images = prepare(people(), params=params_of(compare__shots=[2, 3, "all"]))
    for seed in (0, 1):
        few, some, every = (train_rows(shots, seed)["row"].tolist() for shots in (2, 3, "all"))
        assert few == every[: len(few)] and some == every[: len(some)]
        full = Counter(images.loc[every, "label"])
        assert Counter(images.loc[few, "label"]) == {of: min(2, n) for of, n in full.items()}
        for shots in (2, 3, "all"):
            mine = set(train_rows(shots, seed)["row"])
            assert set(train_pairs(shots, seed)["left"]) <= mine
    assert train_rows("all", 0)["row"].tolist() != train_rows("all", 1)["row"].tolist()


def test_same_input_same_bytes_and_no_seed_touches_another():
    kinds = [{"ways": 3, "count": 5}, {"ways": 2, "count": 5}]
    prepare(people(), params=params_of(compare__seeds=[0, 1], pairs__episodes=kinds))
    first = contents()
    lists.write(params_of(compare__seeds=[0, 1], pairs__episodes=kinds))
    assert contents() == first
    lists.write(params_of(compare__seeds=[5, 1], pairs__episodes=kinds))
    other = contents()
    assert set(first) - set(other) == {
        f"prepared/{folder}/shots-all/seed-0.csv" for folder in ("train", "pairs", "trials")
    }  # fmt: skip
    shared = (set(first) & set(other)) - {"prepared/summary.json"}
    assert all(first[name] == other[name] for name in shared) and len(shared) == 13
    lists.write(params_of(compare__seeds=[0, 1], pairs__episodes=kinds[::-1]))
    assert contents().keys() == first.keys()
    swapped = trials()
    for name in ("3_way_1_shot", "2_way_1_shot", "pairs"):
        text = swapped[swapped["set"] == name].to_csv(index=False, header=False).encode()
        assert text in first["prepared/splits/trials.csv"]


def test_another_seed_of_the_splits_draws_others():
    drawn = set()
    prepare(people())
    for seed in range(4):
        lists.write(params_of(data__splits__seed=seed))
        drawn.add(tuple(pd.read_csv("prepared/splits/test.csv")["row"]))
    assert len(drawn) == 4


def face_pairs(classes, split, first=0, more=()):
    """Listed pairs of classes of two images each: one of every class, one of every two classes."""
    rows = [(split, "pairs", "", first + 2 * of, first + 2 * of + 1, 1) for of in range(classes)]
    rows += [
        (split, "pairs", "", first + 4 * of, first + 4 * of + 3, 0) for of in range(classes // 2)
    ]
    return rows + [(split, "pairs", "", *pair) for pair in more]


def faces(training=40, test=8):
    return table([2] * (training + test), ["train"] * training + ["test"] * test)


def test_listed_pairs_are_taken_as_they_are():
    listed = face_pairs(40, "train") + face_pairs(8, "test", 80)
    images = prepare(faces(), listed)
    check_promises(images)
    given = pd.DataFrame(listed, columns=LISTED)
    of = {"train": train_pairs("all", 0), "val": pd.read_csv("prepared/pairs/val.csv")}
    assert [len(of["train"]), len(of["val"])] == [48, 12]  # a fifth of 60
    merged = {tuple(row) for pairs in of.values() for row in pairs.to_numpy().tolist()}
    training = given[given["split"] == "train"][["left", "right", "same"]]
    assert merged == {tuple(row) for row in training.to_numpy().tolist()}
    assert train_pairs("all", 1).equals(of["train"])
    tested = given[given["split"] == "test"]
    assert trials()[["left", "right", "same"]].equals(
        tested[["left", "right", "same"]].reset_index(drop=True)
    )
    assert summary()["pairs"]["val"] == {
        "same": 8, "different": 4, "same_missing": 0, "different_missing": 0
    }  # fmt: skip
    assert summary()["analysis"]["train"]["pairs"] == {"same": 32, "different": 16}
    assert summary()["pairs_left_out"] == 0


def test_listed_validation_pairs_need_no_cut():
    images = table([2] * 24, ["train"] * 8 + ["val"] * 8 + ["test"] * 8)
    listed = face_pairs(8, "train") + face_pairs(8, "val", 16) + face_pairs(8, "test", 32)
    images = prepare(images, listed)
    check_promises(images)
    assert len(train_pairs("all", 0)) == len(pd.read_csv("prepared/pairs/val.csv")) == 12


def test_pairs_across_the_cut_of_one_component_are_left_out_and_said(capsys):
    ring = [(2 * of, 2 * ((of + 1) % 40), 0) for of in range(40)]
    images = prepare(faces(), face_pairs(40, "train", more=ring) + face_pairs(8, "test", 80))
    check_promises(images)
    kept = len(train_pairs("all", 0)) + len(pd.read_csv("prepared/pairs/val.csv"))
    out = capsys.readouterr().out
    assert 0 < kept < 100
    assert f"prepare: {100 - kept} of 112 listed pairs are left out, across the cut" in out
    assert summary()["pairs_left_out"] == 100 - kept


def test_pairs_of_images_that_stay_out_go_too(capsys):
    listed = face_pairs(40, "train") + face_pairs(8, "test", 80)
    with pytest.raises(InputError, match="identical images stand in two splits"):
        prepare(faces(), listed, [(0, 80)])
    params = params_of(data__exact_duplicates="drop")
    images = prepare(faces(), listed, [(0, 80)], params)
    check_promises(images)
    assert "prepare: 2 of 72 listed pairs are left out, with images that stay out" in (
        capsys.readouterr().out
    )
    assert summary()["left_out"] == 1 and summary()["identical_groups"] == 1
    assert summary()["pairs_left_out"] == 2
    for path in Path("prepared").glob("*/**/*.csv"):
        listed = pd.read_csv(path)
        assert not (listed[listed.columns.intersection(["row", "left", "right"])] == 0).any(
            axis=None
        )


def test_val_per_class_bounds_listed_pairs_too():
    images = table([6] * 24, ["train"] * 20 + ["test"] * 4)
    listed = [("train", "pairs", "", 6 * of + k, 6 * of + k + 1, 1)
              for of in range(20) for k in range(5)]  # fmt: skip
    listed += [("train", "pairs", "", 12 * of + k, 12 * of + 6 + k, 0)
               for of in range(10) for k in range(6)]  # fmt: skip
    images = prepare(images, listed, params=params_of(data__val_per_class=4))
    check_promises(images)
    val = pd.read_csv("prepared/splits/val.csv")
    assert set(Counter(val["label"]).values()) == {4}


def omniglot(evaluation=0):
    """Characters of two alphabets to train on, two runs of two, perhaps an evaluation set."""
    groups = [f"alphabet{of % 4}" for of in range(16)]
    parts = [table([3] * 16, "train", groups)]
    if evaluation:
        parts.append(table([3] * evaluation, "test", ["other"] * evaluation, "e"))
    for run in ("run01", "run02"):
        parts.append(table([2] * 2, "test", [run] * 2, f"{run}/class"))
    images = pd.concat(parts, ignore_index=True)
    listed = []
    for number, run in enumerate(("run01", "run02")):
        first = len(images) - 8 + 4 * number  # support, query, support, query
        listed += [
            ("test", "official", run, first + query, first + support, int(query == support + 1))
            for query in (1, 3)
            for support in (0, 2)
        ]
    return images, listed


@pytest.mark.parametrize("whole", ["groups", "classes"])
def test_alphabets_that_stand_in_two_splits_are_counted(whole):
    images, listed = omniglot()
    params = params_of(data__splits__whole=whole, data__splits__val=0.4)
    images = prepare(images, listed, params=params)
    rows = [train_rows("all", 0)] + [
        pd.read_csv(f"prepared/splits/{of}.csv") for of in ("val", "test")
    ]
    counted = Counter(group for one in rows for group in set(images["group"][one["row"]]))
    divided = sum(splits > 1 for splits in counted.values())
    assert (divided > 0) == (whole == "classes")
    assert summary()["groups"] == 6 and summary()["groups_in_two_splits"] == divided


def test_official_runs_alone_are_the_test_pairs_too(capsys):
    images, listed = omniglot()
    params = params_of(data__splits__whole="groups", pairs__episodes=[{"ways": 2}, {"ways": 5}])
    images = prepare(images, listed, params=params)
    check_promises(images)
    found = trials()
    columns = ["episode", "left", "right", "same"]
    official = found[found["set"] == "official"][columns].reset_index(drop=True)
    assert official.equals(pd.DataFrame(listed, columns=LISTED)[columns])
    pairs = found[found["set"] == "pairs"]
    assert (pairs["episode"] == "").all()
    assert pairs[columns[1:]].reset_index(drop=True).equals(official[columns[1:]])
    out = capsys.readouterr().out
    assert "no test episodes are drawn: all test images stand in the listed runs" in out
    assert "5_way_1_shot is left out of validation: 4 validation classes at most have the 2" in out
    assert summary()["trials"]["official"] == {"episodes": 2, "queries": 4, "trials": 8}
    assert summary()["trials"]["pairs"] == {"episodes": 0, "queries": 0, "trials": 8}
    validation = pd.read_csv("prepared/splits/val.csv")["row"]
    assert len(set(images.loc[validation, "group"])) == 1
    assert set(validation_episodes()["set"]) == {"2_way_1_shot"}


def test_images_of_official_runs_stay_out_of_drawn_pairs_and_episodes():
    images, listed = omniglot(evaluation=6)
    copies = [(48, len(images) - 8), (51, len(images) - 7)]
    images = prepare(images, listed, copies, params_of(pairs__episodes=[{"ways": 5}]))
    check_promises(images)
    found = trials()
    assert list(dict.fromkeys(found["set"])) == ["pairs", "official", "5_way_1_shot"]
    drawn = found[found["set"] != "official"]
    assert set(drawn["left"]) | set(drawn["right"]) <= set(range(48, 66))


def test_an_episode_draws_from_one_group():
    images = table([3] * 24, ["train"] * 8 + ["val"] * 8 + ["test"] * 8,
                   [f"g{of // 4}" for of in range(24)])  # fmt: skip
    images = prepare(images, params=params_of(pairs__episodes=[{"ways": 4, "count": 30}]))
    found = trials()
    groups = []
    for _, episode in found[found["set"] != "pairs"].groupby("episode"):
        named = set(images.loc[[*episode["left"], *episode["right"]], "group"])
        assert len(named) == 1
        groups += named
    assert set(groups) == {"g4", "g5"}
    with pytest.raises(
        InputError,
        match=r"pairs\.episodes\.1\.ways: 5_way_1_shot asks for 5 classes, but 4 test classes at "
        r"most of one group have the 2 images needed",
    ):
        lists.write(params_of(pairs__episodes=[{"ways": 4}, {"ways": 5}]))
    with pytest.raises(InputError, match=r"pairs\.episodes\.0\.shots: 2_way_3_shot .* 0 test"):
        lists.write(params_of(pairs__episodes=[{"ways": 2, "shots": 3}]))


def test_shuffled_labels_leave_nothing_to_learn_but_the_test_as_it_is():
    kinds = [{"ways": 4, "count": 200}]
    prepare(people(60, 6), params=params_of(pairs__episodes=kinds))
    true = contents()
    images = prepare(
        people(60, 6), params=params_of(pairs__episodes=kinds, data__shuffle_labels=True)
    )
    check_promises(images, answers=False)
    label = images["label"].to_numpy()
    for name in ("prepared/splits/test.csv", "prepared/splits/trials.csv"):
        assert contents()[name] == true[name]
    for path in ("prepared/pairs/shots-all/seed-0.csv", "prepared/pairs/val.csv"):
        listed = pd.read_csv(path)
        right = listed["same"] == (label[listed["left"]] == label[listed["right"]])
        assert right[listed["same"] == 1].mean() < 0.3  # of one class by chance alone
    for path in ("prepared/train/shots-all/seed-0.csv", "prepared/splits/val.csv"):
        listed = pd.read_csv(path)
        assert (listed["label"] == label[listed["row"]]).mean() < 0.5
        assert Counter(listed["label"]) == Counter(label[listed["row"]])
    asked = validation_episodes()
    answers = asked[asked["same"] == 1]
    assert len(answers) == 800  # one for each query
    hits = (label[answers["left"]] == label[answers["right"]]).mean()
    assert 0.18 < hits < 0.32  # one in four, 5 sigma
    assert summary()["labels_shuffled"]


def test_shuffled_labels_of_listed_pairs():
    listed = face_pairs(40, "train") + face_pairs(8, "test", 80)
    images = prepare(faces(), listed, params=params_of(data__shuffle_labels=True))
    check_promises(images, answers=False)
    shuffled, other = train_pairs("all", 0), train_pairs("all", 1)
    assert shuffled[["left", "right"]].equals(other[["left", "right"]])
    assert shuffled["same"].sum() == other["same"].sum() == 32
    assert shuffled["same"].tolist() != other["same"].tolist()
    for pairs in (shuffled, pd.read_csv("prepared/pairs/val.csv")):
        assert pairs["same"].tolist() != (pairs["left"] // 2 == pairs["right"] // 2).tolist()


def test_the_summary_counts_images_and_pairs():
    sizes = [3, 1, 2, 4, 5, 2, 2, 3]
    images = table(sizes, ["train"] * 4 + ["val"] * 2 + ["test"] * 2, [*["a"] * 4, *["b"] * 4])
    prepare(images, params=params_of(pairs__per_image=2))
    said = summary()
    assert (said["images"], said["classes"], said["groups"], said["left_out"]) == (22, 8, 2, 0)
    assert said["splits"]["train"] == {"images": 10, "classes": 4}
    assert said["analysis"]["train"]["images_a_class"] == {
        "min": 1, "median": 2.5, "mean": 2.5, "max": 4
    }  # fmt: skip
    for name, path in (("train", "shots-all/seed-0"), ("val", "val")):
        same = pd.read_csv(f"prepared/pairs/{path}.csv")["same"]
        expected = {"same": same.sum(), "different": len(same) - same.sum()}
        assert said["analysis"][name]["pairs"] == expected
        assert expected.items() <= said["pairs"][path].items()
    assert said["trials"] == {
        "pairs": {"episodes": 0, "queries": 0, "trials": len(trials())}
    }  # fmt: skip
    assert said["val_trials"] == {
        "pairs": {"episodes": 0, "queries": 0, "trials": len(trials("prepared/trials/val.csv"))}
    }


@pytest.mark.parametrize(
    ("sizes", "shots", "problem"),
    [
        ([2, 2, 2, 2, 2, 2], [1], r"shots: the pairs of 1 training images a class have none of on"),
        ([2, 2, 2, 2, 2, 2], [3], r"shots: 3 images a class are asked for, but no class has more"),
        ([2, 2, 1, 1, 2, 2], ["all"], r"splits\.val: the validation pairs have none of one class"),
        ([2, 2, 2, 2, 3, 0], ["all"], r"splits\.test: the test pairs have none of two classes"),
    ],
)
def test_each_part_has_pairs_of_both_kinds(sizes, shots, problem):
    images = table(sizes, ["train"] * 2 + ["val"] * 2 + ["test"] * 2)
    with pytest.raises(InputError, match=problem):
        prepare(images, params=params_of(compare__shots=shots))


def test_a_class_in_two_splits_is_refused():
    images = table([4] * 8, ["train"] * 5 + ["test"] * 3)
    images.loc[0, "split"] = "test"
    with pytest.raises(InputError, match=r"class 'c00' stands in test .* and in train"):
        prepare(images)


def test_copies_that_leave_nothing_of_a_split():
    images = table([1, 1, 2, 2, 2, 2], ["train"] * 2 + ["val"] * 2 + ["test"] * 2)
    with pytest.raises(InputError, match="no image is left for train"):
        prepare(images, copies=[(0, 1)], params=params_of(data__exact_duplicates="drop"))


def test_a_trial_out_of_its_split_is_never_written(project):
    rows, path = np.arange(4), project / "trials.csv"
    inside = lists._as_trials(PairList(np.array([0, 1]), np.array([2, 3]), np.array([1, 0])))
    lists._write_trials(path, [inside], rows)
    assert path.read_text() == "set,episode,left,right,same\npairs,,0,2,1\npairs,,1,3,0\n"
    path.unlink()
    with pytest.raises(InputError, match="image 3 would be compared, but is not in the split"):
        lists._write_trials(path, [inside], rows[:3])
    assert not path.exists()
