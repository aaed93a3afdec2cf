"""Datasets are recognised, checked pair by pair, and split so that no case is on both sides."""

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fseg_jax.errors import InputError
from fseg_jax.evaluation.data.dataset_file import read_description
from fseg_jax.evaluation.data.datasets import split_by_case
from fseg_jax.evaluation.data.layouts import open_dataset
from fseg_jax.evaluation.data.mask_codes import IGNORED

YAML = """
name: mine
categories:
  - {name: one, value: 1}
  - {name: two, value: [2, 7]}
ignore: [0]
case: '^(c\\d)'
"""


def picture(path: Path, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (200, 120, 180)).save(path)


def mask(path: Path, values: list | np.ndarray, colours: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(values, np.uint8)
    image = Image.fromarray(array)
    if colours:
        image = Image.fromarray(array, mode="L").convert("P")
        image = Image.frombytes("P", array.shape[1::-1], array.tobytes())
        image.putpalette(colours)
    image.save(path)


def folder_of(tmp_path: Path, values: dict[str, int], yaml: str = YAML) -> Path:
    for name, value in values.items():
        picture(tmp_path / "images" / f"{name}.jpg")
        mask(tmp_path / "masks" / f"{name}.png", np.full((6, 4), value))
    (tmp_path / "dataset.yaml").write_text(yaml)
    return tmp_path


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    dataset = open_dataset(folder_of(tmp_path, {"c1-a": 1, "c1-b": 2, "c2-a": 7, "c3-a": 0}))
    assert dataset.name == "mine" and dataset.categories == ("one", "two") and dataset.mpp is None
    assert [item.case for item in dataset.items] == ["c1", "c1", "c2", "c3"]
    assert dataset.pixels.tolist() == [[24, 0], [0, 24], [0, 24], [0, 0]]
    assert dataset.items[0].split == dataset.items[1].split
    assert dataset.items[0].size == (6, 4) and dataset.read_image(dataset.items[0]).shape == (6, 4, 3)
    assert (dataset.read_truth(dataset.items[2]) == 1).all() and (
        dataset.read_truth(dataset.items[3]) == IGNORED
    ).all()


def test_masks_of_colours(tmp_path: Path) -> None:
    yaml = "categories: [{name: a, colour: [255, 0, 0]}, {name: b, colour: [0, 0, 9]}]\nignore: [[0, 0, 0]]"
    for name in ("p", "q"):
        picture(tmp_path / "images" / f"{name}.png", (1, 3))
        mask(tmp_path / "masks" / f"{name}.png", [[[255, 0, 0], [0, 0, 9], [0, 0, 0]]])
    (tmp_path / "dataset.yaml").write_text(yaml)
    dataset = open_dataset(tmp_path)
    assert dataset.read_truth(dataset.items[0]).tolist() == [[0, 1, IGNORED]]
    mask(tmp_path / "masks/q.png", [[[255, 0, 1], [0, 0, 9], [0, 0, 0]]])
    with pytest.raises(InputError, match=r"q: unknown code #ff0001 \(1 pixels\)"):
        open_dataset(tmp_path)


def test_codes_are_the_values_that_a_tiff_stores(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"c1": 1, "c2": 2})
    (folder / "masks/c2.png").unlink()
    for dtype in (np.uint8, np.uint16, np.int32, np.uint32):
        codes = np.full((6, 4), 7, dtype)
        tifffile.imwrite(folder / "masks/c2.tif", codes, photometric="miniswhite", compression="zlib")
        assert open_dataset(folder).pixels.tolist() == [[24, 0], [0, 24]]
    for dtype, value in ((np.int32, -1), (np.uint32, 70_001)):  # 70,001 is 4,465 in 16 bits
        tifffile.imwrite(folder / "masks/c2.tif", np.full((6, 4), value, dtype))
        with pytest.raises(InputError, match=rf"c2: unknown code {value} \(24 pixels\)"):
            open_dataset(folder)


def test_no_codes_are_read_from_what_a_jpeg_has_changed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"c1": 1, "c2": 2})
    (folder / "masks/c2.png").unlink()
    mask(folder / "masks/c2.jpg", np.full((6, 4), 2))
    with pytest.raises(InputError, match=r"c2\.jpg: its compression may have changed its values"):
        open_dataset(folder)


def test_every_pair_that_does_not_fit_is_named_in_one_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {f"c{n}": 1 for n in range(6)})
    mask(folder / "masks/c0.png", np.ones((5, 4)))
    mask(folder / "masks/c1.png", np.full((6, 4), 9))
    (folder / "masks/c2.png").unlink()
    (folder / "images/c3.jpg").unlink()
    (folder / "masks/c4.png").write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        open_dataset(folder)
    message = str(caught.value)
    assert "\n" not in message and "5 of 6" in message
    assert "c0: image 6 × 4, mask 5 × 4" in message
    assert "c1: unknown code 9 (24 pixels)" in message
    assert "c2: an image without a mask" in message and "c3: a mask without an image" in message
    assert "c4.png: not a mask that can be read" in message


def test_split_by_pattern_and_empty_splits(tmp_path: Path) -> None:
    values = {"c1": 1, "c2": 2, "c3": 2}
    dataset = open_dataset(folder_of(tmp_path, values, YAML + "test: '3$'\n"))
    assert [item.split for item in dataset.items] == ["train", "train", "test"]
    with pytest.raises(InputError, match="the test split is empty"):
        open_dataset(folder_of(tmp_path, values, YAML + "test: nothing\n"))
    with pytest.raises(InputError, match="the training split is empty"):
        open_dataset(folder_of(tmp_path, values, YAML + "test: c\n"))
    with pytest.raises(InputError, match=r"both sides of the split.*c1"):
        open_dataset(folder_of(tmp_path, {"c1-a": 1, "c1-b": 1}, YAML + "test: 'b$'\n"))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("categories: [", "not YAML"),
        ("name: nothing", "needs categories"),
        (YAML + "spilt: x", "and no more"),
        ("categories: [{name: a}]", "give a name, and a value or a colour"),
        ("categories: [{name: a, value: 1}]", "two or more"),
        (
            "categories: [{name: a, value: x}, {name: b, value: 1}]",
            "'x' is neither a value of 0 to 65535 nor a colour",
        ),
        ("categories: [{name: a, value: 1}, {name: b, value: 1}]", "two meanings"),
        ("categories: [{name: a, value: 1}, {name: b, colour: [1, 2, 3]}]", "mixed"),
        (YAML + "test: '('", "no regular expression"),
        (YAML + "mpp: -1", "not a number of µm"),
        ("", "needs categories"),
        ("- a\n- b", "needs categories"),
        ("categories:", "categories: None is no list"),
        ("categories: {a: 1, b: 2}", "categories: .* is no list"),
        ("categories: [1, 2]", "categories: 1: give a name"),
        ("categories: [{name: yes, value: 1}, {name: b, value: 2}]", "categories: True is no name"),
        ("categories: [{name: [a], value: 1}, {name: b, value: 2}]", "categories: .* is no name"),
        ("categories: [{name: a, value: 1}, {name: a, value: 2}]", "categories: a, a: .* of different names"),
        ("categories: [{name: a, value: []}, {name: b, value: 2}]", "categories: a: has no value"),
        ("categories: [{name: a, value: true}, {name: b, value: 2}]", "categories: a: True is neither"),
        ("categories: [{name: a, value: 70000}, {name: b, value: 2}]", "categories: a: 70000 is neither"),
        ("categories: [{name: a, value: {x: 1}}, {name: b, value: 2}]", "categories: a: .* is neither"),
        ("categories: [{name: a, colour: 5}, {name: b, value: 2}]", "categories: a: 5 is no colour"),
        ("categories: [{name: a, colour: [1.0, 2, 3]}, {name: b, value: 2}]", "categories: a: .* is neither"),
        ("categories: [{name: a, colour: [[1], 2, 3]}, {name: b, value: 2}]", "categories: a: .* is neither"),
        ("categories:\n" + "".join(f"- {{name: n{i}, value: {i}}}\n" for i in range(255)), r"254 at most"),
        (YAML + "categories: []", "categories: is given twice"),
        (YAML.replace("ignore: [0]", "ignore: 0"), "ignore: 0 is no list"),
        (YAML.replace("ignore: [0]", "ignore: abc"), "ignore: 'abc' is no list"),
        ("? [1]\n: 2", "not YAML"),
        ("!!python/name:os.system ", "not YAML"),
        (YAML + "mpp: .nan", "mpp: nan is not a number"),
        (YAML + "mpp: yes", "mpp: True is not a number"),
        (YAML + "mpp: 2001-01-01", "mpp: .* is not a number"),
        (YAML + "mpp: " + "9" * 400, "mpp: 9+ is not a number"),
        (YAML + "mpp: 2001-13-45", "not YAML"),
        (YAML + "test: 3", "test: 3 is no regular expression: put it in quotes"),
        (YAML + "test: [a]", "test: .* is no regular expression"),
        (YAML + "test: '(?!a)'", "test: .* is no regular expression of RE2"),
        (YAML + "test: '((a{99}){99}){99}'", "test: .* is no regular expression of RE2"),
        (YAML + f"test: '{'a' * 1001}'", "test: is longer than 1000"),
        (YAML.replace("name: mine", 'name: "\\ud800"'), "name: .* is no name"),
        (YAML + "#" * 300_000, "is larger than 256 kB"),
        ("categories: " + "[" * 3000, "nested too deep"),
        ("categories: " + "[" * 30 + "]" * 30, "nested too deep"),
        ("categories: &a [*a]", "holds too much"),
    ],
    ids=lambda value: value[-40:],
)
def test_a_wrong_dataset_yaml(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(folder_of(tmp_path, {"c1": 1, "c2": 2}, yaml))
    assert "\n" not in str(caught.value) and "dataset.yaml: " in str(caught.value)


@pytest.mark.parametrize("content", [b"\0\1", b"name: \xe9", "name: a".encode("utf-16")])
def test_a_dataset_yaml_that_is_no_text(tmp_path: Path, content: bytes) -> None:
    folder = folder_of(tmp_path, {"c1": 1})
    (folder / "dataset.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"dataset\.yaml: not YAML \(.*\): mend it"):
        open_dataset(folder)


def test_what_aliases_stand_for_is_bounded_before_anything_is_made_of_it(tmp_path: Path) -> None:
    """Nine lists of four of the one before would be 262,144 values, merged mappings as many keys."""
    path = tmp_path / "dataset.yaml"
    lists = "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 4)}]\n" for i in range(1, 10)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 4)}]}}\n" for i in range(1, 10)
    )
    for text in (lists, merges):
        path.write_text(text)
        with pytest.raises(InputError, match=r"dataset\.yaml: holds too much"):
            read_description(path)
    path.write_text(
        "categories: [{name: a, colour: &red [255, 0, 0]}, {name: b, colour: [0, 0, 9]}]\nignore: [*red]"
    )
    with pytest.raises(InputError, match=r"\[255, 0, 0\] is given two meanings"):
        read_description(path)


def test_patterns_are_of_an_engine_whose_time_is_linear(tmp_path: Path) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(YAML + "test: '^TCGA-(OL|LL)'")
    description = read_description(path)
    assert {type(description.case).__module__, type(description.test).__module__} == {"re2"}
    assert description.find_case("c7-x") == "c7" and description.find_case("x") == "x"
    assert [description.is_test(name) for name in ("TCGA-OL-1", "TCGA-LL", "x-TCGA-OL", "TCGA-A1")] == [
        True,
        True,
        False,
        False,
    ]
    assert description.find_case("c8\udce9") == "c8"  # a file's name that is no text


def test_a_case_whose_group_matches_nothing_is_the_name(tmp_path: Path) -> None:
    yaml = YAML.replace("'^(c\\d)'", "'^(x)?c'")
    assert {item.case for item in open_dataset(folder_of(tmp_path, {"c1": 1, "c2": 2}, yaml)).items} == {
        "c1",
        "c2",
    }


@pytest.mark.parametrize("name", ["stat", "iterdir", "open"])
def test_a_dataset_that_cannot_be_looked_at_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, {"c1": 1, "c2": 2})
    if name == "iterdir":
        (folder / "dataset.yaml").unlink()
        (folder / "masks").rename(folder / "others")  # so that folders of classes are looked for

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(InputError, match=r"cannot be looked at \(Permission denied\)") as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)


def test_a_dataset_of_too_long_a_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be looked at \(File name too long\)"):
        open_dataset(tmp_path / ("n" * 300))


def test_bcss_groups_its_codes_and_keeps_the_published_test_institutes(tmp_path: Path) -> None:
    codes = np.arange(22).reshape(2, 11)
    for name in ("TCGA-A1-A0SK-DX1_xmin1", "TCGA-A1-A0SK-DX1_xmin2", "TCGA-OL-A5D6-DX1_xmin3"):
        picture(tmp_path / "rgbs_colorNormalized" / f"{name}.png", (2, 11))
        mask(tmp_path / "masks" / f"{name}.png", codes)
    dataset = open_dataset(tmp_path)
    assert dataset.name == "BCSS" and dataset.mpp == 0.25
    assert dataset.categories == ("tumour", "stroma", "inflammatory", "necrosis", "other")
    assert dataset.pixels[0].tolist() == [3, 1, 3, 1, 13]
    truth = dataset.read_truth(dataset.items[0]).reshape(-1)
    assert truth[0] == IGNORED
    assert truth[[1, 19, 20]].tolist() == [0, 0, 0] and truth[[3, 10, 11]].tolist() == [2, 2, 2]
    assert [item.split for item in dataset.items] == ["train", "train", "test"]
    assert dataset.items[0].case == "TCGA-A1-A0SK"
    mask(tmp_path / "masks/TCGA-OL-A5D6-DX1_xmin3.png", codes + 1)
    with pytest.raises(InputError, match="unknown code 22"):
        open_dataset(tmp_path)


def test_wsss4luad_reads_palette_indices(tmp_path: Path) -> None:
    palette = [0, 64, 128, 64, 128, 0, 243, 152, 0, 255, 255, 255]
    for split in ("2.validation", "3.testing"):
        picture(tmp_path / split / "img" / "00.png", (2, 2))
        mask(tmp_path / split / "mask" / "00.png", [[0, 1], [2, 3]], palette)
    dataset = open_dataset(tmp_path)
    assert dataset.name == "WSSS4LUAD"
    assert dataset.categories == ("tumour", "stroma", "normal", "background")
    assert dataset.read_truth(dataset.items[0]).tolist() == [[0, 1], [2, 3]]
    assert [item.split for item in dataset.items] == ["train", "test"]


def test_ebhi_takes_the_number_for_the_case(tmp_path: Path) -> None:
    for name in ("Polyp/{}/GT2012467-1-400-001", "Normal/{}/GTxc2012467-2-400-003", "Polyp/{}/GT1-1-400-001"):
        picture(tmp_path / (name.format("image") + ".png"))
        mask(tmp_path / (name.format("label") + ".png"), np.repeat([[0, 100, 128, 255]], 6, 0))
    dataset = open_dataset(tmp_path)
    assert dataset.name == "EBHI-Seg" and {item.case for item in dataset.items} == {"2012467", "1"}
    assert dataset.pixels[0].tolist() == [12, 12]
    same = [item.split for item in dataset.items if item.case == "2012467"]
    assert len(same) == 2 and len(set(same)) == 1


def test_a_third_of_the_cases_whatever_their_order() -> None:
    cases = [f"case {n // 3}" for n in range(90)]
    tests = split_by_case(cases)
    assert sum(tests) == 30
    assert split_by_case(cases[::-1]) == tests[::-1]
    assert not {c for c, t in zip(cases, tests, strict=True) if t} & {
        c for c, t in zip(cases, tests, strict=True) if not t
    }


def test_a_folder_of_no_known_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("put a dataset.yaml beside images/ and masks/")):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "nowhere")


def test_real_ebhi(data: Path) -> None:
    dataset = open_dataset(data / "ebhi")
    assert len(dataset.items) == 2226 and len({item.case for item in dataset.items}) == 340
    train, test = ({i.case for i in dataset.items if i.split == split} for split in ("train", "test"))
    assert not train & test and len(test) == 113
    share = dataset.pixels.sum(0) / dataset.pixels.sum()
    assert share[1] == pytest.approx(0.636, abs=0.005)


def test_real_regions_of_bcss(data: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).symlink_to(data / "bcss_tumour" / folder)
    (tmp_path / "dataset.yaml").write_text(
        "categories: [{name: other, value: 0}, {name: tumour, value: 255}]\nmpp: 0.25\n"
    )
    dataset = open_dataset(tmp_path)
    assert (
        len(dataset.items) == 3 and dataset.count_pixels("train").all() and dataset.count_pixels("test").all()
    )
