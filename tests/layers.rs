//! Layers of the crate: imports go down only, and the outside world is accessed in one place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Modules by layer; those of one layer do not import each other, except for the pairs in
/// `BESIDE`.
const LAYERS: [(u8, &[&str]); 9] = [
    (0, &["time", "proto", "document", "model"]),
    (1, &["wire"]),
    (2, &["twamp", "stats"]),
    (3, &["net", "store", "supervise"]),
    (4, &["session", "results"]),
    (5, &["control", "export", "telemetry"]),
    (6, &["api"]),
    (7, &["settings", "agent", "ctl"]),
    (8, &["db", "demo", "service"]),
];

/// Allowed imports within a layer, from left to right.
const BESIDE: [(&str, &str); 7] = [
    ("model", "proto"),
    ("model", "time"),
    ("document", "proto"),
    ("twamp", "stats"),
    ("session", "results"),
    ("document", "model"),
    ("agent", "settings"),
];

/// Crates and types that only some modules may import.
const CONFINED: [(&str, &[&str]); 18] = [
    ("timestamped_socket", &["net"]),
    ("sled", &["store"]),
    ("nix", &["net", "store"]),
    ("socket2", &["net"]),
    ("std::net::UdpSocket", &["net"]),
    ("std::net::TcpStream", &["net"]),
    ("tonic", &["api", "ctl", "agent", "export"]),
    ("tonic_reflection", &["api", "agent"]),
    ("tonic_types", &["api", "ctl"]),
    ("tonic_health", &["api"]),
    ("hickory_resolver", &["net"]),
    ("rtime_clock", &["net"]),
    ("getrandom", &["net"]),
    ("netlink_packet_core", &["net"]),
    ("netlink_packet_route", &["net"]),
    ("netlink_packet_sock_diag", &["net"]),
    ("netlink_sys", &["net"]),
    ("sd_notify", &["service"]),
];

/// Modules below the drivers have no clock, randomness, socket or async.
const PURE: [&str; 7] = ["time", "proto", "document", "model", "wire", "twamp", "stats"];
const IMPURE: [&str; 8] = [
    "tokio",
    "std::thread",
    "std::fs",
    "Instant::now",
    "SystemTime::now",
    "async fn",
    ".await",
    "getrandom",
];

fn layer(module: &str) -> u8 {
    LAYERS
        .iter()
        .find(|(_, modules)| modules.contains(&module))
        .unwrap_or_else(|| panic!("module {module} has no layer: name it in this test"))
        .0
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns module and code of each file of the library, without comments and tests.
fn modules() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    files
        .into_iter()
        .filter_map(|path| {
            let inside = path.strip_prefix(&root).unwrap().to_owned();
            let first = inside.iter().next().unwrap().to_str().unwrap();
            let module = first.trim_end_matches(".rs").to_owned();
            if ["lib", "main", "bin"].contains(&module.as_str())
                || inside.starts_with("twamp/simulation")
                || inside.ends_with("simulation.rs")
            {
                return None;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let code: Vec<&str> =
                code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            Some((module, path, code.join("\n")))
        })
        .collect()
}

/// Returns the modules of the crate that a file imports.
fn imports(code: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = Vec::new();
    for part in code.split("crate::").skip(1) {
        if let Some(list) = part.strip_prefix('{') {
            // Collects the first name of each item of the list, at the outermost depth.
            let (mut depth, mut item) = (0, String::new());
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(name(std::mem::take(&mut item).trim())),
                    _ if depth == 0 => item.push(c),
                    _ => {}
                }
            }
            found.push(name(item.trim()));
        } else {
            found.push(name(part));
        }
    }
    found.retain(|module| !module.is_empty());
    found
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for (module, path, code) in modules() {
        for imported in imports(&code) {
            if imported == module || !LAYERS.iter().any(|(_, m)| m.contains(&imported.as_str())) {
                continue;
            }
            looked_at += 1;
            let beside = BESIDE.contains(&(module.as_str(), imported.as_str()));
            if layer(&imported) >= layer(&module) && !beside {
                wrong.push(format!("{}: {module} imports {imported}", path.display()));
            }
        }
    }
    assert!(looked_at > 100, "imports are found at all: {looked_at}");
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_module_has_a_layer() {
    for (module, _, _) in modules() {
        layer(&module);
    }
}

#[test]
fn the_world_is_touched_in_one_place() {
    let mut wrong = Vec::new();
    for (module, path, code) in modules() {
        for (library, allowed) in CONFINED {
            let named = [format!("{library}::"), format!("use {library};")];
            let here = code.lines().any(|line| {
                named.iter().any(|name| {
                    line.find(name.as_str()).is_some_and(|at| {
                        let before = line[..at].chars().next_back();
                        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                    })
                })
            });
            if here && !allowed.contains(&module.as_str()) {
                wrong.push(format!("{}: {library}", path.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// Returns true when the code imports `library::module`, directly or in a group.
fn imports_part(code: &str, library: &str, module: &str) -> bool {
    let squeezed: String = code.split_whitespace().collect();
    if squeezed.contains(&format!("{library}::{module}::")) {
        return true;
    }
    let opening = format!("{library}::{{");
    squeezed.split(opening.as_str()).skip(1).any(|group| {
        let group = group.split(';').next().unwrap_or_default();
        group.starts_with(&format!("{module}::")) || group.contains(&format!(",{module}::"))
    })
}

#[test]
fn sockets_come_from_net() {
    const ENDS: [&str; 3] = ["net", "api", "ctl"];
    const MADE: [&str; 5] = [
        "TcpListener::bind",
        "TcpStream::connect",
        "UdpSocket::bind",
        "UnixListener::bind",
        "Socket::new(",
    ];
    let mut wrong = Vec::new();
    let is_test = |path: &Path| path.ends_with("tests.rs");
    for (module, path, code) in modules().into_iter().filter(|(_, path, _)| !is_test(path)) {
        let is_whole = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let makes = MADE.iter().any(|name| code.match_indices(name).any(|(at, _)| is_whole(at)));
        if (imports_part(&code, "tokio", "net") || makes) && !ENDS.contains(&module.as_str()) {
            wrong.push(path.display().to_string());
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(imports_part("use tokio::{\n io,\n net::TcpStream,\n};", "tokio", "net"));
    assert!(imports_part("tokio::net::lookup_host(x)", "tokio", "net"));
    assert!(!imports_part("use tokio::{io, sync}; use crate::{net::tcp};", "tokio", "net"));
}

/// `super::super::…` out of a module would be an import that this test misses.
#[test]
fn no_import_leaves_a_module_through_super() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (_, path, code) in modules() {
        let inside = path.strip_prefix(&root).unwrap();
        let own_file = usize::from(!inside.ends_with("mod.rs"));
        let depth = inside.components().count() - 1 + own_file;
        if code.contains(&format!("{}:", "super::".repeat(depth).trim_end_matches(':')))
            && depth > 1
        {
            wrong.push(inside.display().to_string());
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn machines_have_no_io() {
    let mut wrong = Vec::new();
    for (module, path, code) in modules() {
        if PURE.contains(&module.as_str()) {
            for name in IMPURE {
                if code.contains(name) {
                    wrong.push(format!("{}: {name}", path.display()));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// Results and states become messages of the API above the machines, in one place for each.
#[test]
fn machines_build_no_messages() {
    let mut wrong = Vec::new();
    for (module, path, code) in modules() {
        let is_machine = ["stats", "twamp", "wire"].contains(&module.as_str());
        let is_test = path.to_string_lossy().contains("/tests/");
        if is_machine && !is_test && imports(&code).iter().any(|name| name == "proto") {
            wrong.push(path.display().to_string());
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_test_sees_what_it_looks_for() {
    let code = "use crate::{\n model::{A, net::B},\n proto,\n};\nlet x = crate::store::y();";
    assert_eq!(imports(code), ["model", "proto", "store"]);
}

/// Longest file, in lines without tests, and longest function.
const MAXIMUM_FILE_LINES: usize = 450;
const MAXIMUM_FUNCTION_LINES: usize = 80;

/// Module path of a file in `src`, as `results::statistics::session`.
fn module_path(inside: &Path) -> String {
    let path = inside.with_extension("");
    let mut names: Vec<&str> = path.iter().filter_map(|name| name.to_str()).collect();
    if names.last() == Some(&"mod") {
        names.pop();
    }
    names.join("::")
}

/// Paths that the `use` declarations of a file import, with groups written out.
fn uses(code: &str) -> Vec<String> {
    fn expand(prefix: &str, tree: &str, found: &mut Vec<String>) {
        let (mut depth, mut start) = (0, 0);
        for (at, c) in tree.char_indices().chain([(tree.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    let item = &tree[start..at];
                    start = at + 1;
                    match item.split_once('{') {
                        Some((path, group)) => {
                            let group = group.strip_suffix('}').unwrap_or(group);
                            expand(&format!("{prefix}{path}"), group, found);
                        }
                        None if item.is_empty() => {}
                        None => found.push(format!("{prefix}{item}").replace("::self", "")),
                    }
                }
                _ => {}
            }
        }
    }
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for declaration in code.split("use ").skip(1) {
        let before_semicolon = declaration.split(';').next().unwrap_or_default();
        let without_names: Vec<String> = before_semicolon
            .split_inclusive([',', '{', '}'])
            .map(|item| match item.split_once(" as ") {
                // The separator after a new name stays.
                Some((path, name)) => format!("{path}{}", name.trim_start_matches(is_name)),
                None => item.to_owned(),
            })
            .collect();
        let tree: String = without_names.concat().split_whitespace().collect();
        expand("", &tree, &mut found);
    }
    found
}

struct Tree {
    /// Imported paths from the root of the crate, by module.
    imports: BTreeMap<String, Vec<String>>,
}

impl Tree {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files: BTreeMap<String, String> = modules()
            .into_iter()
            .map(|(_, path, code)| (module_path(path.strip_prefix(&root).unwrap()), code))
            .collect();
        let absolute = |module: &str, path: &str| -> Option<String> {
            if let Some(path) = path.strip_prefix("crate::") {
                return Some(path.to_owned());
            }
            let (mut base, mut rest) = (module, path);
            while let Some(above) = rest.strip_prefix("super::") {
                (base, rest) = (base.rsplit_once("::").map_or("", |(base, _)| base), above);
            }
            let rest = rest.strip_prefix("self::").unwrap_or(rest);
            let child = format!("{base}::{}", rest.split("::").next().unwrap_or_default());
            (rest != path || files.contains_key(&child)).then(|| format!("{base}::{rest}"))
        };
        let imports = files.iter().map(|(module, code)| {
            let paths = uses(code).iter().filter_map(|path| absolute(module, path)).collect();
            (module.clone(), paths)
        });
        Self { imports: imports.collect() }
    }

    /// The module that an imported path is defined in; what a module re-exports is defined below it.
    fn defined_in(&self, path: &str, depth: usize) -> Option<String> {
        let mut module = path;
        while !self.imports.contains_key(module) {
            module = module.rsplit_once("::")?.0;
        }
        let name = path[module.len()..].trim_start_matches("::").split("::").next()?;
        let below = format!("{module}::");
        let exported = self.imports[module].iter().find(|import| {
            !name.is_empty() && import.starts_with(&below) && import.ends_with(&format!("::{name}"))
        });
        match exported {
            Some(exported) if depth > 0 && exported != path => self.defined_in(exported, depth - 1),
            _ => Some(module.to_owned()),
        }
    }

    /// Modules that each module imports. What a module takes from those that contain it is left out:
    /// the root of a module holds what its parts share.
    fn edges(&self) -> BTreeMap<String, BTreeSet<String>> {
        let edges = self.imports.iter().map(|(module, paths)| {
            let targets = paths.iter().filter_map(|path| self.defined_in(path, 4));
            let targets = targets
                .filter(|target| target != module && !module.starts_with(&format!("{target}::")));
            (module.clone(), targets.collect())
        });
        edges.collect()
    }
}

fn reachable(edges: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(module) = open.pop() {
        for target in edges.get(&module).into_iter().flatten() {
            if found.insert(target.clone()) {
                open.push(target.clone());
            }
        }
    }
    found
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let edges = Tree::read().edges();
    let circular: Vec<&String> =
        edges.keys().filter(|module| reachable(&edges, module).contains(*module)).collect();
    // Parts of a test may know each other.
    let is_test = |module: &str| module.split("::").any(|part| part == "tests");
    let wrong: Vec<&&String> = circular.iter().filter(|module| !is_test(module)).collect();
    println!("in a circle: {circular:?}");
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(edges["control::commit::plan"].contains("control::commit::proposal"));
    assert!(edges["control::reconcile"].contains("control::clients"));
}

/// Functions of a file with their lines; code is formatted, so a function ends at its indentation.
fn functions(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let words = line.trim_start();
        let indent = line.len() - words.len();
        let before = words.split("fn ").next().unwrap_or_default();
        let is_function = words.contains("fn ")
            && before
                .split_whitespace()
                .all(|word| word.starts_with("pub") || ["const", "async", "in"].contains(&word));
        if !is_function || words.ends_with(';') {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[at..].iter().position(|line| *line == end);
        let name = words[before.len() + 3..].split(['(', '<']).next().unwrap_or_default();
        found.push((name.to_owned(), length.unwrap_or(0) + 1));
    }
    found
}

#[test]
fn files_and_functions_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (_, path, code) in modules() {
        let inside = path.strip_prefix(&root).unwrap().display().to_string();
        if inside.ends_with("tests.rs") || inside.contains("/tests/") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines().count();
        if lines > MAXIMUM_FILE_LINES {
            wrong.push(format!("{inside}: {lines} lines"));
        }
        for (name, lines) in functions(&code) {
            if lines > MAXIMUM_FUNCTION_LINES {
                wrong.push(format!("{inside}: {name}: {lines} lines"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// Returns the names that the code passes to `Tasks::spawn`.
fn spawned_tasks(code: &str) -> Vec<String> {
    let calls = code.split(".spawn(").skip(1);
    let names = calls.filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next());
    names.map(str::to_owned).collect()
}

#[test]
fn every_task_is_in_the_architecture_document() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let document = fs::read_to_string(path).unwrap();
    let section = document.split("\n## Tasks\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let first_cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next());
    // Between backquotes are the odd parts.
    let documented: BTreeSet<&str> =
        first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let is_thread =
        |name: &str| name.ends_with("-N") || ["results", "result-writer"].contains(&name);
    let spawned: BTreeSet<String> =
        modules().iter().flat_map(|(_, _, code)| spawned_tasks(code)).collect();
    assert!(spawned.contains("reconcile") && spawned.contains("host"), "{spawned:?}");
    let undocumented: Vec<_> =
        spawned.iter().filter(|name| !documented.contains(name.as_str())).collect();
    assert_eq!(undocumented, Vec::<&String>::new());
    let gone: Vec<_> =
        documented.iter().filter(|name| !is_thread(name) && !spawned.contains(**name)).collect();
    assert_eq!(gone, Vec::<&&str>::new());
}

#[test]
fn the_shape_is_seen() {
    let code =
        "use super::{a::B as C, c};\npub(super) fn f(\n  x: u8,\n) {\n}\nuse crate::x::Y as Z;";
    assert_eq!(uses(code), ["super::a::B", "super::c", "crate::x::Y"]);
    assert_eq!(functions(code), [("f".to_owned(), 4)]);
}
