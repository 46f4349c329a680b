use order_users::transport::compare;

#[tokio::test]
async fn both_transports_are_measured() {
    let compared = compare(32).await.unwrap();
    for it in [compared.rest, compared.grpc] {
        assert!(it.median <= it.p99 && it.alone > 0.0 && it.together > 0.0, "{it:?}");
    }
    let table = compared.to_string();
    assert!(table.contains("REST") && table.contains("gRPC") && table.lines().count() == 4, "{table}");
}

/// Prints what the binary prints, with a release build: `cargo test --release -p order-users -- --ignored --nocapture figures`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "for the figures alone"]
async fn figures() {
    println!("{}", compare(5_000).await.unwrap());
}
