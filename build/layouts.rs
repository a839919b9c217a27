//! Layouts of the requests: the memory of each message and of the elements of its lists, so that the
//! API can tell what a request would take before it decodes it.

use std::{collections::BTreeMap, error::Error, fmt::Write};

use protox::prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

/// Package of the API.
const PACKAGE: &str = "twamp.agent.v1";

/// Returns the code for all methods of the API.
pub(crate) fn code(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let methods = pool.services().filter(|service| service.package_name() == PACKAGE);
    let methods: Vec<_> =
        methods.flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    let (mut layouts, mut messages) = (BTreeMap::new(), BTreeMap::new());
    for method in &methods {
        collect(&method.input(), &mut layouts);
        messages.insert(method.output().name().to_owned(), false);
    }
    for method in &methods {
        messages.insert(method.input().name().to_owned(), true);
    }
    let mut code = String::new();
    for message in layouts.values() {
        layout(message, &mut code)?;
    }
    for (name, is_request) in messages {
        let value = match is_request {
            true => format!("Some(&{})", constant(&name)),
            false => "None".to_owned(),
        };
        writeln!(code, "impl ApiMessage for crate::proto::{name} {{")?;
        writeln!(code, "const NAME: &'static str = \"{name}\";")?;
        writeln!(code, "const LAYOUT: Option<&'static Layout> = {value};")?;
        writeln!(code, "}}")?;
    }
    Ok(code)
}

fn collect(message: &MessageDescriptor, found: &mut BTreeMap<String, MessageDescriptor>) {
    if found.insert(message.full_name().to_owned(), message.clone()).is_some() {
        return;
    }
    for field in message.fields().filter(|field| !field.is_map()) {
        if let Kind::Message(part) = field.kind() {
            collect(&part, found);
        }
    }
}

fn layout(message: &MessageDescriptor, code: &mut String) -> Result<(), Box<dyn Error>> {
    let module = match message.package_name() {
        PACKAGE => "crate::proto",
        "google.protobuf" => "::prost_types",
        other => return Err(format!("{}: no module for {other}", message.full_name()).into()),
    };
    let name = message.name();
    writeln!(code, "static {}: Layout = Layout {{", constant(name))?;
    writeln!(code, "octets: size_of::<{module}::{name}>(),")?;
    writeln!(code, "parts: &[")?;
    for field in message.fields() {
        let number = field.number();
        if let Some(part) = part(&field) {
            writeln!(code, "({number}, \"{}\", {part}),", field.name())?;
        }
    }
    writeln!(code, "] }};")?;
    Ok(())
}

/// Returns the part for a field that takes memory beyond that of its message.
fn part(field: &FieldDescriptor) -> Option<String> {
    if field.is_map() {
        return Some("Part::Entry".to_owned());
    }
    let is_list = field.is_list();
    match field.kind() {
        Kind::Message(part) => {
            let kind = if is_list { "Element" } else { "Message" };
            Some(format!("Part::{kind}(&{})", constant(part.name())))
        }
        Kind::String | Kind::Bytes if is_list => Some("Part::ElementText".to_owned()),
        Kind::String | Kind::Bytes => Some("Part::Text".to_owned()),
        Kind::Bool
        | Kind::Double
        | Kind::Enum(_)
        | Kind::Fixed32
        | Kind::Fixed64
        | Kind::Float
        | Kind::Int32
        | Kind::Int64
        | Kind::Sfixed32
        | Kind::Sfixed64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Uint32
        | Kind::Uint64 => is_list.then(|| "Part::ElementNumber".to_owned()),
    }
}

/// Returns the name of the constant of a message.
fn constant(name: &str) -> String {
    let mut constant = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !constant.is_empty() {
            constant.push('_');
        }
        constant.push(letter.to_ascii_uppercase());
    }
    constant
}
