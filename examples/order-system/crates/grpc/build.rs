//! Generates the messages, the servers and the clients from the contracts, without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let contracts = protox::compile(["proto/users.proto", "proto/orders.proto"], ["proto"])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(contracts)?;
    Ok(())
}
