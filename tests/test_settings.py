"""What is wrong in a YAML file is refused by file, line, field and value; nothing is converted quietly."""

import pytest

from stlib import paths
from stlib.settings import Fields, many, read_yaml, within


class Machine(Fields):
    name: str
    cores: int
    load: float = 0.0
    marks: many(float) = ()


class Machines(Fields):
    machines: dict[int, Machine]


GOOD = {"name": "a", "cores": 2}


def build(where, kind, given):
    with within(where):
        return kind(**given)


@pytest.mark.parametrize("text, message", [
    ("", r"bad\.yml holds None: give fields"),
    ("# nothing\n", "holds None"),
    ("- a\n- b\n", r"holds \['a', 'b'\]"),
    ("just words\n", "holds 'just words'"),
    ("{}\n", "holds {}"),
    ("a: 1\n\tb: 2\n", r"bad\.yml, line 2: .*spaces"),
    ("a: 1\nb: [1, 2\n", r"bad\.yml, line 3: "),
    ("a: 1\nb: 2\na: 3\n", r"bad\.yml, line 3: 'a' is given twice"),
    ("cells:\n  1: {a: 1}\n  01: {a: 2}\n", "line 3: 1 is given twice"),
    ("a: {b: 1, b: 1}\n", "line 1: 'b' is given twice"),
    ("[1]: 2\n", "line 1: .*unhashable"),
    ("a: !!python/object:os.system x\n", "line 1: could not determine a constructor"),
    ("a: *b\n", "line 1: found undefined alias"),
    ("a: b\x00\n", r"bad\.yml: .*UTF-8"),
    ("a: 1\nb:\n", r"bad\.yml, line 2: a value is empty"),
    ("a: {b: [1, ~]}\n", r"bad\.yml, line 1: a value is empty"),
    ("a: 1\n1: 2\n", r"bad\.yml holds {'a': 1, 1: 2}: give fields"),
])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    (tmp_path / "bad.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "bad.yml")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path in (tmp_path / "none.yml", tmp_path):
        with pytest.raises(ValueError, match=f"{path} cannot be read .*name a YAML file"):
            read_yaml(path)
    (tmp_path / "latin.yml").write_bytes("a: ä\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yml: .*UTF-8"):
        read_yaml(tmp_path / "latin.yml")


def test_merged_fields_may_be_overridden(tmp_path):
    (tmp_path / "good.yml").write_text("one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}\n")
    assert read_yaml(tmp_path / "good.yml")["two"] == {"a": 1, "b": 3}


@pytest.mark.parametrize("change, message", [
    ({"speed": 1}, "file: unknown field 'speed': use name, cores, load, marks"),
    ({"cores": None}, "file: cores is missing"),
    ({"cores": "2"}, "file: cores = '2': it must be a valid integer"),
    ({"cores": 2.0}, "cores = 2.0"),
    ({"cores": True}, "cores = True"),
    ({"cores": [2]}, r"cores = \[2\]"),
    ({"load": True}, "load = True"),
    ({"load": "0.5"}, "load = '0.5'"),
    ({"load": float("nan")}, "load = nan: it must be a finite number"),
    ({"load": float("inf")}, "load = inf"),
    ({"name": 3}, "name = 3"),
    ({"marks": []}, r"marks = \[\]"),
    ({"marks": {1: 2}}, "marks"),
    ({"marks": [1, "2"]}, r"file: marks\[1\] = '2'"),
    ({"marks": [1, None]}, r"marks\[1\] = None"),
])
def test_wrong_fields_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        build("file", Machine, GOOD | change)


def test_missing_fields_and_no_fields_are_refused():
    with pytest.raises(ValueError, match="file: cores is missing"):
        build("file", Machine, {"name": "a"})
    with pytest.raises(ValueError, match="file: name is missing"):
        build("file", Machine, {})


@pytest.mark.parametrize("machine, message", [
    ({"name": "a"}, "cores is missing"), (GOOD | {"cores": "2"}, "cores = '2'"),
    (GOOD | {1: 1}, "unknown field 1: use "), (None, "= None"), ([], r"= \[\]"), ("words", "= 'words'")])
def test_fields_within_fields_are_refused_by_their_place(machine, message):
    with pytest.raises(ValueError, match=r"^file: machines\[3\]:? " + message):
        build("file", Machines, {"machines": {2: GOOD, 3: machine}})


def test_changed_fields_are_checked_again():
    machine = Machine(**GOOD)
    assert machine.but(cores=3) == Machine("a", 3) and machine.cores == 2
    with pytest.raises(ValueError, match=r"cores = 2\.0"):
        machine.but(cores=2.0)


def test_one_alone_is_a_list_of_one():
    assert build("file", Machine, GOOD | {"marks": 3}) == Machine("a", 2, 0.0, (3.0,))
    assert build("file", Machine, GOOD | {"marks": [3, 4]}).marks == (3.0, 4.0)


@pytest.mark.parametrize("file", [*sorted(paths.ROOT.glob("data/**/*.yml")),
                                  *sorted(paths.ROOT.glob("notebooks/profiles/*/*.yml"))], ids=str)
def test_every_committed_file_is_read(file):
    assert all(isinstance(name, str) for name in read_yaml(file))
