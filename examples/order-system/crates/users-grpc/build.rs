//! Generates the messages, the server and the client from the contract, without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let contract = protox::compile(["proto/users.proto"], ["proto"])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(contract)?;
    Ok(())
}
