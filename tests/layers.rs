//! Layers of the crate: imports go down only, and the outside world is accessed in one place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
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
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
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
    for (module, path, code) in modules() {
        let makes = MADE.iter().any(|name| code.contains(name));
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

#[test]
fn the_test_sees_what_it_looks_for() {
    let code = "use crate::{\n model::{A, net::B},\n proto,\n};\nlet x = crate::store::y();";
    assert_eq!(imports(code), ["model", "proto", "store"]);
}
