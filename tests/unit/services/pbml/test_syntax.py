"""Code is cut between declarations, in every language there is a grammar for."""

import pytest

from devmentor.pbml.syntax import LANGUAGES, grammar, spans

BODY = "value = compute(value, 1);"


def chunks(text, language, size):
    return [(section, text[start:end]) for start, end, section in spans(text, language, size)]


PYTHON = '''"""Module with a text of some length, so that it fills a chunk almost by itself."""

import os


# Says hello.
@decorated
def first(name):
    """One."""
    return name


class Queue:
    """Of jobs."""

    def put(self, job):
        self.jobs.append(job)
        self.count += 1
        self.changed.set()

    def take(self):
        self.count -= 1
        return self.jobs.pop(0)
'''


def test_declarations_that_fit_stay_whole_with_what_leads_them():
    found = chunks(PYTHON, "python", 120)
    assert [section for section, _ in found] == ["", "first", "Queue", "Queue > put", "Queue > take"]
    assert found[1][1].startswith("# Says hello.\n@decorated\ndef first")
    assert found[3][1].startswith("    def put(self, job):"), "a chunk begins with its line, indented as it was"
    assert "".join(text for _, text in found) == PYTHON


def test_small_declarations_share_a_chunk():
    assert len(chunks(PYTHON, "python", 1000)) == 1


def test_a_declaration_that_is_too_long_is_cut_between_its_statements():
    text = "def long():\n" + "".join(f"    step_{n} = run({n})\n" for n in range(30))
    found = chunks(text, "python", 200)
    assert all(section == "long" for section, _ in found)
    assert all(piece.endswith(")\n") for _, piece in found[1:])


SOURCES = {
    "bash": "{name}() {{\n  echo one\n  echo two\n}}\n",
    "c": "int {name}(int value) {{\n  {body}\n  {body}\n}}\n",
    "cpp": "int {name}(int value) {{\n  {body}\n  {body}\n}}\n",
    "go": "func {name}(value int) {{\n\tvalue = 1\n\tvalue = 2\n}}\n",
    "java": "class {name} {{\n  int value = 1;\n  int other = 2;\n}}\n",
    "javascript": "function {name}(value) {{\n  {body}\n  {body}\n}}\n",
    "python": "def {name}(value):\n    value = 1\n    value = 2\n",
    "rust": "fn {name}(value: i32) {{\n    let a = 1;\n    let b = 2;\n}}\n",
    "tsx": "function {name}(value: number) {{\n  {body}\n  {body}\n}}\n",
    "typescript": "function {name}(value: number) {{\n  {body}\n  {body}\n}}\n",
}


def test_every_language_is_tried():
    assert sorted(SOURCES) == sorted(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_function_is_torn(language):
    declarations = [SOURCES[language].format(name=f"name{n}", body=BODY) for n in range(12)]
    found = chunks("\n".join(declarations), language, 150)
    assert len(found) > 2
    for declaration in declarations:
        assert sum(declaration.strip() in text for _, text in found) == 1
    assert grammar(language).startswith(f"{language}/")


@pytest.mark.parametrize("text", ["", "(" * 20_000, "}}}}}}", 'class A: """' + "x" * 5000, "é" * 3000 + "\n= 字"])
def test_what_is_hardly_code_is_covered_too(text):
    found = spans(text, "python", 200)
    assert "".join(text[start:end] for start, end, _ in found) == text


def test_characters_are_not_bytes():
    text = "".join(f"name{n} = 'é字🙂' * {n}\n" for n in range(40))
    found = chunks(text, "python", 200)
    assert len(found) > 4
    assert all(piece.startswith("name") and piece.endswith("\n") for _, piece in found)
