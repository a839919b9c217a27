//! Table of the methods of the API: the role that a caller needs, and the form of the answer. A
//! method without the option `required_role` fails the build.

use std::{error::Error, fmt::Write};

use protox::prost_reflect::DescriptorPool;

const PACKAGE: &str = "twamp.agent.v1";
const OPTION: &str = "twamp.agent.v1.required_role";
const ROLE: &str = "twamp.agent.v1.Role";

/// Returns the code of the table.
pub(crate) fn code(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let option = pool.get_extension_by_name(OPTION).ok_or("no option required_role")?;
    let role = pool.get_enum_by_name(ROLE).ok_or("no enum Role")?;
    let mut code = String::from("pub(super) static METHODS: &[Method] = &[\n");
    for service in pool.services().filter(|service| service.package_name() == PACKAGE) {
        for method in service.methods() {
            let number = method.options().get_extension(&option).as_enum_number();
            let value = number.filter(|number| *number != 0).and_then(|n| role.get_value(n));
            let value = value.ok_or_else(|| format!("{}: no required_role", method.full_name()))?;
            let word = value.name().trim_start_matches("ROLE_").to_ascii_lowercase();
            let variant = format!("{}{}", word[..1].to_ascii_uppercase(), &word[1..]);
            writeln!(
                code,
                "Method {{ path: \"/{}/{}\", name: \"{}\", role: Role::{variant}, \
                 is_stream: {} }},",
                service.full_name(),
                method.name(),
                method.name(),
                method.is_server_streaming(),
            )?;
        }
    }
    code.push_str("];\n");
    Ok(code)
}
