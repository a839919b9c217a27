//! Compiles `proto/` without a `protoc` on the machine: messages for the whole crate, services
//! for the API layer and the command-line client alone, and the descriptor set for reflection.

#[path = "build/layouts.rs"]
mod layouts;
#[path = "build/methods.rs"]
mod methods;
#[path = "build/secrets.rs"]
mod secrets;

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 6] = ["agent", "client", "config", "options", "results", "server"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let sources: Vec<String> =
        FILES.iter().map(|name| format!("twamp/agent/v1/{name}.proto")).collect();

    let mut compiler = protox::Compiler::new(["proto"])?;
    // Reflection shows comments only with source information.
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(&sources)?;
    let descriptors = compiler.file_descriptor_set();
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    let secrets = secrets::Secrets::find(&compiler.descriptor_pool());
    fs::write(out.join("secrets.rs"), secrets.code()?)?;

    fs::write(out.join("methods.rs"), methods::code(&compiler.descriptor_pool())?)?;
    fs::write(out.join("layouts.rs"), layouts::code(&compiler.descriptor_pool())?)?;

    let messages = out.join("messages");
    fs::create_dir_all(&messages)?;
    prost_build::Config::new()
        .out_dir(&messages)
        .btree_map(["."])
        // Written by `secrets`, without their values.
        .skip_debug(secrets.messages())
        // A session has several of these, most of them without delays for most of the time.
        .boxed("TestSession.stamp")
        .boxed("TestSession.thresholds")
        .boxed("Figures.rtt")
        .boxed("Figures.egress")
        .boxed("Figures.ingress")
        .boxed("Figures.rtt_jitter")
        .boxed("Figures.egress_jitter")
        .boxed("Figures.ingress_jitter")
        .boxed("Figures.reflector_processing")
        .boxed("Figures.schedule_error")
        .boxed("Figures.egress_delay_variation")
        .boxed("Figures.ingress_delay_variation")
        .boxed("Figures.stamp")
        .boxed("TestResult.figures")
        .boxed("IntervalResult.figures")
        .boxed("Statistics.figures")
        // Records are made one at a time; a box for each would only cost.
        .enum_attribute(".", "#[allow(clippy::large_enum_variant)]")
        .compile_fds(descriptors.clone())?;

    let services = out.join("services");
    fs::create_dir_all(&services)?;
    tonic_prost_build::configure()
        .out_dir(&services)
        .extern_path(".twamp.agent.v1", "crate::proto")
        .codec_path("crate::api::codec::ApiCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
