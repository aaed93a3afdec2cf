"""Files of cluster names: what is read, and one line for each mistake."""

import numpy as np
import pytest

from fseg_jax.errors import InputError
from fseg_jax.outputs.cluster_names import format_names, load_names, name_clusters, parse_names
from fseg_jax.outputs.colours import make_default_names, make_palette

pytestmark = pytest.mark.smoke


def test_named_clusters_have_their_names_and_the_others_their_defaults(tmp_path):
    path = tmp_path / "names.csv"
    path.write_bytes("\ufeffcluster,name,colour\r\n3,tumour nests,#FF0010\r\n1,Epithel — µ,\r\n".encode())
    names, colours = load_names(path).apply(4)
    assert names == ("Epithel — µ", "cluster 2", "tumour nests", "cluster 4")
    expected = make_palette(4)
    expected[2] = (255, 0, 16)
    np.testing.assert_array_equal(colours, expected)


def test_without_a_file_all_are_defaults():
    names, colours = name_clusters(None, 300)
    assert names == make_default_names(300)
    np.testing.assert_array_equal(colours, make_palette(300))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_are_found_by_their_names(delimiter):
    """A finished slide's own CSV, edited in a spreadsheet, serves too."""
    lines = ["share,Colour,Name,cluster", "0.5,#0000ff,'=x,2", "", "0.5,,plain,1"]
    content = "\n".join(lines).replace(",", delimiter).encode()
    assert parse_names(content, "n").apply(2).names == ("plain", "=x")
    assert parse_names(format_names(parse_names(content, "n")), "m").apply(2).names == ("plain", "=x")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no column cluster and no column name in its first line; names are CSV with the columns"),
        (b"cluster,colour\n1,#000000\n", "no column name in"),
        (b"cluster,name,name\n1,a,b\n", "two columns are called name"),
        (b"cluster,name\n", "no names, only a header"),
        (b"cluster,name\n1,a,b\n", "line 2: 3 cells, but the header has 2"),
        (b"cluster,name\n0,a\n", "line 2: '0' is no number of a cluster"),
        (b"cluster,name\n-1,a\n", "line 2: '-1' is no number"),
        (b"cluster,name\none,a\n", "line 2: 'one' is no number"),
        (b"cluster,name\n5,a\n", "line 2: there is no cluster 5: the codebook has 4"),
        (b"cluster,name\n99999999999999999999,a\n", "there is no cluster 999999999"),
        (b"cluster,name\n1,a\n1,b\n", "line 3: cluster 1 is also on line 2"),
        (b"cluster,name\n1,a\n2,a\n", "line 3: 'a' is also the name on line 2"),
        (b"cluster,name\n1,cluster 2\n", "two clusters would be called 'cluster 2'"),
        (b"cluster,name\n1,tumour: nests\n", "line 2: 'tumour: nests' holds a colon, where QuPath splits"),
        (b"cluster,name\n1, \n", "no names, only a header or lines without one"),
        (b"cluster,name,colour\n1,,#ff0000\n", "line 2: the name is empty"),
        (b'cluster,name\n1,"a\nb"\n', "holds a character that cannot be printed"),
        (b"cluster,name\n1," + b"a" * 201 + b"\n", "201 letters; 200 at most"),
        (b"cluster,name\n1,tissue_mm2\n", "'tissue_mm2' is a column of areas.csv"),
        (b"cluster,name,colour\n1,a,red\n", "line 2: 'red' is no colour; write it as #rrggbb"),
        (b"cluster,name,colour\n1,a,#12345\n", "'#12345' is no colour"),
        (b"cluster,name\n1,a\n2,\xe9pith\xe9lium\n", "line 3 is not UTF-8"),
        (b'cluster,name\n1,"a\n', "is not CSV"),
    ],
)
def test_each_mistake_is_one_line(content, says):
    with pytest.raises(InputError) as caught:
        parse_names(content, "names.csv").apply(4)
    said = str(caught.value)
    assert says in said and said.startswith("names.csv: ") and "\n" not in said


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file; names are CSV"):
        load_names(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be read"):
        load_names(tmp_path)
