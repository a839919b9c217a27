//! Code for secrets, the fields with the option `debug_redact`: a visitor for all those of a
//! configuration, and `Debug` without their values. A field without the option is no secret, so
//! there is no list to keep.

use std::{collections::BTreeMap, error::Error, fmt::Write};

use protox::prost_reflect::{
    Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor,
};

/// The message whose secrets are visited.
const ROOT: &str = "twamp.agent.v1.AgentConfig";
/// Fields that identify a part of a list.
const NAMES: [&str; 2] = ["name", "key_id"];

pub(crate) struct Secrets {
    /// Messages with a secret of their own.
    redacted: Vec<MessageDescriptor>,
    /// Messages in the root that have secrets in them, by name.
    visited: BTreeMap<String, MessageDescriptor>,
}

impl Secrets {
    pub(crate) fn find(pool: &DescriptorPool) -> Self {
        let has_secret = |message: &MessageDescriptor| message.fields().any(|f| is_secret(&f));
        let redacted = pool.all_messages().filter(has_secret).collect();
        let mut visited = BTreeMap::new();
        if let Some(root) = pool.get_message_by_name(ROOT) {
            collect(&root, &mut visited);
        }
        Self { redacted, visited }
    }

    /// Names the messages that get their `Debug` here.
    pub(crate) fn messages(&self) -> Vec<String> {
        self.redacted.iter().map(|message| format!(".{}", message.full_name())).collect()
    }

    pub(crate) fn code(&self) -> Result<String, Box<dyn Error>> {
        let mut code = String::new();
        for message in &self.redacted {
            debug(message, &mut code)?;
        }
        for message in self.visited.values() {
            self.visitor(message, &mut code)?;
        }
        Ok(code)
    }

    fn visitor(
        &self,
        message: &MessageDescriptor,
        code: &mut String,
    ) -> Result<(), Box<dyn Error>> {
        let name = message.name();
        writeln!(code, "impl VisitSecrets for {name} {{")?;
        writeln!(
            code,
            "fn visit_secrets(&mut self, location: &str, visit: &mut SecretVisitor<'_>) {{"
        )?;
        for field in message.fields() {
            let own = field.name();
            if is_secret(&field) {
                let digest = format!("{own}_digest");
                let is_string = field.kind() == Kind::String && !field.is_list();
                if !is_string || message.get_field_by_name(&digest).is_none() {
                    return Err(format!("secret {name}.{own} is no string with a {digest}").into());
                }
                writeln!(code, "if !self.{own}.is_empty() || !self.{digest}.is_empty() {{")?;
                writeln!(
                    code,
                    "visit(&format!(\"{{location}}.{own}\"), &mut self.{own}, &mut self.{digest});"
                )?;
                writeln!(code, "}}")?;
            } else if let Kind::Message(part) = field.kind()
                && self.visited.contains_key(part.name())
            {
                if field.is_map() || field.containing_oneof().is_some() {
                    return Err(format!("secrets in {name}.{own} cannot be visited").into());
                }
                let names = NAMES.iter().find(|name| part.get_field_by_name(name).is_some());
                let location = match (field.cardinality(), names) {
                    (Cardinality::Repeated, Some(name)) => {
                        format!("\"{{location}}.{own}[{{}}]\", part.{name}")
                    }
                    (Cardinality::Repeated, None) => format!("\"{{location}}.{own}[{{index}}]\""),
                    _ => format!("\"{{location}}.{own}\""),
                };
                writeln!(code, "for (index, part) in self.{own}.iter_mut().enumerate() {{")?;
                writeln!(code, "let _ = index;")?;
                writeln!(code, "let location = format!({location});")?;
                writeln!(code, "part.visit_secrets(&location, visit);")?;
                writeln!(code, "}}")?;
            }
        }
        writeln!(code, "}} }}")?;
        Ok(())
    }
}

fn debug(message: &MessageDescriptor, code: &mut String) -> Result<(), Box<dyn Error>> {
    let name = message.name();
    writeln!(code, "impl ::core::fmt::Debug for {name} {{")?;
    writeln!(code, "fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{")?;
    writeln!(code, "f.debug_struct(\"{name}\")")?;
    for field in message.fields().filter(|field| !is_secret(field)) {
        let own = field.name();
        writeln!(code, ".field(\"{own}\", &self.{own})")?;
    }
    writeln!(code, ".finish_non_exhaustive() }} }}")?;
    Ok(())
}

fn is_secret(field: &FieldDescriptor) -> bool {
    let option = field.options();
    option.get_field_by_name("debug_redact").is_some_and(|value| value.as_bool() == Some(true))
}

/// Collects a message and those in it, where there is a secret in them. Returns whether there is.
fn collect(message: &MessageDescriptor, found: &mut BTreeMap<String, MessageDescriptor>) -> bool {
    if found.contains_key(message.name()) {
        return true;
    }
    let mut has_secret = false;
    for field in message.fields() {
        has_secret |= is_secret(&field);
        if let Kind::Message(part) = field.kind() {
            has_secret |= collect(&part, found);
        }
    }
    if has_secret {
        found.insert(message.name().to_owned(), message.clone());
    }
    has_secret
}
