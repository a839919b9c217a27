#!/usr/bin/env python3
"""Checks how the comments of the code are worded, and names that say nothing.

Prints three figures and fails when one of them exceeds its limit:
comment blocks that open with a free relative ("What …", "Whether …"), comment blocks of three
words or fewer, and functions whose name says nothing (`fn take`, `fn of`, `fn told`).
`--list` names the places, `--self-test` runs the tests of this script, arguments are files or
directories to check instead of the whole tree.
"""

import argparse
import ast
import pathlib
import re
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEFAULT_PATHS = ["src", "proto", "tests", "benches", "fuzz/fuzz_targets", "build.rs"]
# The limits only come down.
FREE_RELATIVE_PERCENT_LIMIT = 0.2
SHORT_LIMIT = 14
VAGUE_NAME_LIMIT = 1

FREE_RELATIVE = re.compile(
    r"(What|Whether|Where|How|Who|Whoever|Which|So|For so|One that|Those)\b"
)
SHORT_WORDS = 3
COMMENT = {
    ".rs": re.compile(r"\s*(///|//!|//)(?!/)\s?(.*)"),
    ".proto": re.compile(r"\s*(//)\s?(.*)"),
    ".py": re.compile(r"\s*(#)(?!!)\s?(.*)"),
}
VAGUE_NAME = re.compile(r"\bfn (take|of|told)\b")


def comment_blocks(text, suffix):
    """Returns (line, text) of each run of comment lines of one kind, and of each docstring."""
    blocks, kind = [], None
    for number, line in enumerate(text.splitlines(), 1):
        match = COMMENT[suffix].fullmatch(line)
        if not match:
            kind = None
        elif match[1] == kind:
            blocks[-1][1].append(match[2])
        else:
            kind = match[1]
            blocks.append((number, [match[2]]))
    found = [(number, " ".join(lines).strip()) for number, lines in blocks]
    if suffix == ".py":
        found += docstrings(text)
    return sorted((number, block) for number, block in found if block)


def docstrings(text):
    """Returns (line, text) of each docstring of a Python file."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                found.append((node.body[0].lineno, " ".join(docstring.split())))
    return found


def files(paths):
    """Returns the source files below the paths, in order."""
    found = []
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [file for file in inside if file.suffix in COMMENT and file.is_file()]
    return found


class Findings:
    """Places in breach of each rule, as "path:line: text"."""

    def __init__(self, paths):
        self.blocks = 0
        self.free_relatives = []
        self.short = []
        self.vague_names = []
        for path in files(paths):
            self.read(path)

    def read(self, path):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for line, block in comment_blocks(text, path.suffix):
            self.blocks += 1
            place = f"{name}:{line}: {block[:90]}"
            if FREE_RELATIVE.match(block):
                self.free_relatives.append(place)
            if len(block.split()) <= SHORT_WORDS:
                self.short.append(place)
        if path.suffix == ".rs":
            for line, code in enumerate(text.splitlines(), 1):
                if VAGUE_NAME.search(code.split("//")[0]):
                    self.vague_names.append(f"{name}:{line}: {code.strip()[:90]}")

    def rules(self):
        """Returns (places, figure, whether the limit holds) of each rule."""
        percent = 100 * len(self.free_relatives) / max(self.blocks, 1)
        return [
            (
                self.free_relatives,
                f"{len(self.free_relatives)} of {self.blocks} comment blocks open with a free "
                f"relative: {percent:.2f} % (limit: under {FREE_RELATIVE_PERCENT_LIMIT:g} %)",
                percent < FREE_RELATIVE_PERCENT_LIMIT,
            ),
            (
                self.short,
                f"{len(self.short)} comment blocks of {SHORT_WORDS} words or fewer "
                f"(limit: under {SHORT_LIMIT})",
                len(self.short) < SHORT_LIMIT,
            ),
            (
                self.vague_names,
                f"{len(self.vague_names)} functions named take, of or told "
                f"(limit: under {VAGUE_NAME_LIMIT})",
                len(self.vague_names) < VAGUE_NAME_LIMIT,
            ),
        ]


class LanguageTest(unittest.TestCase):
    """Tests of the script itself."""

    def findings(self, name, text):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, name)
            path.write_text(text, encoding="utf-8")
            return Findings([path])

    def test_a_run_of_lines_is_one_block(self):
        found = self.findings("a.rs", "//! Purpose of the file.\n//! More.\n\n/// Which.\nfn a() {}\n")
        self.assertEqual(found.blocks, 2)
        self.assertEqual(len(found.free_relatives), 1)
        self.assertEqual(len(found.short), 1)

    def test_kinds_of_comment_are_separate_blocks(self):
        found = self.findings("a.rs", "/// Sends one packet to a peer.\n// So it is not lost later.\n")
        self.assertEqual((found.blocks, len(found.free_relatives)), (2, 1))

    def test_only_whole_words_open_a_free_relative(self):
        text = "/// Whole packets that were received.\n\n/// Socket options of all sessions.\n"
        self.assertEqual(self.findings("a.rs", text).free_relatives, [])

    def test_each_free_relative_is_found(self):
        opens = ["What", "Whether", "Where", "How", "Who", "Which", "So", "For so", "One that",
                 "Those", "Whoever"]
        text = "\n\n".join(f"// {word} is read here again." for word in opens)
        self.assertEqual(len(self.findings("a.proto", text).free_relatives), len(opens))

    def test_vague_names_are_found_in_code_only(self):
        found = self.findings("a.rs", "fn take(&self) {}\nfn takes() {} // fn of\npub fn of() {}\n")
        self.assertEqual(len(found.vague_names), 2)

    def test_a_count_at_its_limit_fails(self):
        found = self.findings("a.rs", "fn take(&self) {}\n" * (VAGUE_NAME_LIMIT - 1))
        self.assertEqual([holds for _, _, holds in found.rules()], [True, True, True])
        found = self.findings("a.rs", "fn take(&self) {}\n" * VAGUE_NAME_LIMIT)
        self.assertEqual([holds for _, _, holds in found.rules()], [True, True, False])

    def test_python_docstrings_and_comments_count(self):
        text = '#!/usr/bin/env python3\n"""What it does."""\n# A comment of five words\n'
        found = self.findings("a.py", text)
        self.assertEqual((found.blocks, len(found.free_relatives), len(found.short)), (2, 1, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=pathlib.Path)
    parser.add_argument("--list", action="store_true", help="name the places")
    parser.add_argument("--self-test", action="store_true", help="test this script")
    arguments = parser.parse_args()
    if arguments.self_test:
        unittest.main(argv=[sys.argv[0]])
    paths = [path.resolve() for path in arguments.paths]
    rules = Findings(paths or [ROOT / path for path in DEFAULT_PATHS]).rules()
    for places, figure, holds in rules:
        print(("ok    " if holds else "FAIL  ") + figure)
        if arguments.list:
            print("".join(f"      {place}\n" for place in places), end="")
    return 0 if all(holds for _, _, holds in rules) else 1


if __name__ == "__main__":
    sys.exit(main())
