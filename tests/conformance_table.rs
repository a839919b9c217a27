//! Check of `docs/conformance.md` against the items and their tests: an item without a test, a
//! test without an item and an outdated table fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Tests of each item: function and file.
fn tests(root: &Path) -> BTreeMap<u32, Vec<(String, String)>> {
    let mut files = Vec::new();
    for directory in ["src", "tests"] {
        walk(&root.join(directory), &mut files);
    }
    files.sort();
    let mut found: BTreeMap<u32, Vec<(String, String)>> = BTreeMap::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let file = path.strip_prefix(root).unwrap().display().to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        for (at, line) in lines.iter().enumerate() {
            let name = ["fn ", "def test_", "async fn "]
                .iter()
                .find_map(|start| line.strip_prefix(start))
                .and_then(|rest| rest.split('(').next())
                .filter(|name| name.starts_with("conformance_"));
            let Some(name) = name else { continue };
            assert!(is_run(root, &path, &lines[..at]), "{file}: {name} is not run");
            let parts = name.split('_').skip(1);
            let numbers = parts.map_while(|part| (part.len() == 3).then(|| part.parse().ok())?);
            for number in numbers {
                found.entry(number).or_default().push((name.to_owned(), file.clone()));
            }
        }
    }
    found
}

/// Returns true when the attributes make a function a test that is run, or when CI runs the suite
/// of a Python file.
fn is_run(root: &Path, path: &Path, before: &[&str]) -> bool {
    let attributes: Vec<&str> = before
        .iter()
        .rev()
        .take_while(|line| line.starts_with(['#', '@']) || line.starts_with("//"))
        .copied()
        .collect();
    if path.extension().is_some_and(|e| e == "py") {
        let ci = fs::read_to_string(root.join(".ci/run")).unwrap();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let suite = format!("suite {stem}");
        let alone = ci.lines().any(|line| line.ends_with(&suite) && line.starts_with("step "));
        // Lanes of suites, named without the common prefix.
        let lanes = ci.lines().skip_while(|line| !line.starts_with("lanes \""));
        let mut lanes = lanes.take_while(|line| !line.starts_with("step "));
        let name = stem.strip_prefix("test_").unwrap();
        let runs = alone || lanes.any(|line| line.split([' ', '"']).any(|word| word == name));
        let text = fs::read_to_string(path).unwrap();
        let skips = ["@unittest.", "skipTest", "SkipTest", "load_tests"];
        return runs && !skips.iter().any(|skip| text.contains(skip));
    }
    let is = |wanted: &str| attributes.iter().any(|line| line.starts_with(wanted));
    (is("#[test]") || is("#[tokio::test")) && !is("#[ignore") && !is("#[cfg")
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "py") {
            found.push(path);
        }
    }
}

fn table(root: &Path) -> String {
    let items = fs::read_to_string(root.join("tests/conformance/items.txt")).unwrap();
    let mut tests = tests(root);
    let mut text = String::from(
        "# Conformance\n\n\
         Each item is a test whose name begins with `conformance_` and the numbers of its items. All\n\
         of them run in CI, and none may fail: those in Rust with `cargo test`, those in Python with\n\
         the suites of `.ci/run`. `UPDATE_DOCS=1 cargo test --test conformance_table` makes this\n\
         table, and a test keeps it true: every item has a test, and every such test an item.\n\n\
         C is the Control-Client with its Session-Sender, S the Server with its Session-Reflector.\n\n\
         | item | end | RFC | what | tests | result |\n|---|---|---|---|---|---|\n",
    );
    let mut missing = Vec::new();
    for line in items.lines().filter(|line| !line.starts_with('#')) {
        let [number, end, section, what] = line.split('|').collect::<Vec<_>>().try_into().unwrap();
        let of_item = tests.remove(&number.parse().unwrap()).unwrap_or_default();
        if of_item.is_empty() {
            missing.push(number.to_owned());
        }
        let names: Vec<String> =
            of_item.iter().map(|(name, file)| format!("[`{name}`](../{file})")).collect();
        let names = names.join("<br>");
        text += &format!("| {number} | {end} | {section} | {what} | {names} | passes |\n");
    }
    assert_eq!(missing, Vec::<String>::new(), "items without a test");
    assert!(tests.is_empty(), "tests without an item: {tests:?}");
    text
}

#[test]
fn the_table_is_made_of_the_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (path, made) = (root.join("docs/conformance.md"), table(root));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let there = fs::read_to_string(path).unwrap_or_default();
    assert!(there == made, "docs/conformance.md is not what the tests say: UPDATE_DOCS=1 makes it");
}
