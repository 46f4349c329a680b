//! Every journey, and chaos with three seeds.

use std::time::Duration;

use order_kit::env;
use order_system::{chaos, demo};

use crate::shapes::{Servers, play, servers};

/// One at a time: a system is as much as a small machine can do.
pub static STAGE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

macro_rules! journeys {
    ($($test:ident: $name:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let _stage = STAGE.lock().await;
                assert_eq!(demo::play($name, &play(&Servers::embedded())).await.expect("it can be played"), 0);
            }
        )*

        #[test]
        fn every_journey_is_played() {
            let names: Vec<&str> = demo::NAMES.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$($name),*]);
        }
    };
}

journeys! {
    happy: "happy";
    declined: "declined";
    out_of_stock: "out-of-stock";
    payment_down: "payment-down";
    payment_killed: "payment-killed";
    crash: "crash";
    broker_down: "broker-down";
    cascade: "cascade";
    chain: "chain";
    chain_of_retries: "chain-of-retries";
    strangler: "strangler";
    canary: "canary";
}

/// Whoever moves an order on, it ends the same way.
#[tokio::test(flavor = "multi_thread")]
async fn orders_end_the_same_when_nobody_conducts() {
    let _stage = STAGE.lock().await;
    let mut play = play(&Servers::embedded());
    play.variables.push((env::SAGA_STYLE.to_owned(), "choreography".to_owned()));
    for name in ["happy", "declined", "out-of-stock"] {
        assert_eq!(demo::play(name, &play).await.expect("it can be played"), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_with_servers() {
    let Some(servers) = servers("crash_with_servers") else { return };
    let _stage = STAGE.lock().await;
    let missed = demo::play("crash", &play(&servers)).await;
    servers.clean().await.expect("nothing is left");
    assert_eq!(missed.expect("it can be played"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_with_three_seeds() {
    let _stage = STAGE.lock().await;
    for seed in [1, 2, 3] {
        let green = chaos::run(seed, Duration::from_secs(8), &play(&Servers::embedded())).await;
        assert!(green.expect("it can be played"), "seed {seed}");
    }
}
