//! Instances say that they are there, and other processes hear of it.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use order_gateway::{Registry, RegistryClient, registry::Instance};
use order_kit::context::{Locate, Ports};
use tokio_util::sync::CancellationToken;

use crate::support::{TOKEN, env, gateway};

#[tokio::test]
async fn instances_register_and_are_found() {
    let gateway = gateway(env()).await;
    let token = [("x-service-token", TOKEN)];
    let none = gateway.send(Method::GET, "/discover/users", &token, "").await;
    assert_eq!(
        (none.status, &none.json()["error"]),
        (StatusCode::NOT_FOUND, &"Service users not found".into())
    );
    let instance = r#"{"service":"users","host":"127.0.0.1","port":4001,"id":"a"}"#;
    let beat = r#"{"service":"users","id":"a"}"#;
    let unknown =
        gateway.send(Method::POST, "/registry/register", &[("x-service-token", "guess")], instance).await;
    assert_eq!(unknown.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        gateway.send(Method::POST, "/registry/heartbeat", &token, beat).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        gateway.send(Method::POST, "/registry/register", &token, instance).await.status,
        StatusCode::CREATED
    );
    for _ in 0..3 {
        assert_eq!(
            gateway.send(Method::POST, "/registry/heartbeat", &token, beat).await.status,
            StatusCode::OK
        );
    }
    let found = gateway.send(Method::GET, "/discover/users", &[], "").await.json();
    assert_eq!(found.as_array().unwrap().len(), 1, "whoever is on this machine may ask");
    assert_eq!((&found[0]["id"], &found[0]["port"]), (&"a".into(), &4001.into()));
    for bad in [
        r#"{"service":"users","host":"a/b","port":1,"id":"x"}"#,
        r#"{"service":"users","host":"user@evil","port":1,"id":"x"}"#,
        r#"{"service":"","host":"a","port":1,"id":"x"}"#,
        r#"{"service":"users","host":"a","port":0,"id":"x"}"#,
        r#"{"service":"users"}"#,
    ] {
        let answer = gateway.send(Method::POST, "/registry/register", &token, bad).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    assert_eq!(
        gateway.send(Method::DELETE, "/registry/users/a", &token, "").await.status,
        StatusCode::NO_CONTENT
    );
    assert!(gateway.registry.instances("users").is_empty());
    let route = r#"{"to":"new"}"#;
    for (method, path, body) in [
        (Method::GET, "/discover/%FF", ""),
        (Method::DELETE, "/registry/users/%FF", ""),
        (Method::PUT, "/_routes/%FF", route),
        (Method::GET, "/_traces/%FF", ""),
    ] {
        let odd = gateway.send(method, path, &token, body).await;
        assert_eq!(
            (odd.status, &odd.json()["error"]),
            (StatusCode::BAD_REQUEST, &"Malformed path".into()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn another_process_has_a_copy_and_says_that_it_is_there() {
    let gateway = gateway(env()).await;
    let client = RegistryClient::new(
        &format!("http://{}/", gateway.address),
        gateway.context.tokens(),
        Arc::new(Ports(3000)),
    );
    let client = Arc::new(client);
    assert_eq!(client.locate("users"), "http://127.0.0.1:3001", "nothing is known yet");
    let own =
        |port| Instance { service: "users".into(), host: "10.0.0.7".into(), port, id: format!("i{port}") };
    let stop = CancellationToken::new();
    let running = tokio::spawn(client.clone().run(vec![own(1), own(2)], stop.clone()));
    let both = async {
        while gateway.registry.instances("users").len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), both).await.expect("they do not register");
    client.refresh().await.unwrap();
    let bases: Vec<String> = (0..10).map(|_| client.locate("user")).collect();
    assert_eq!(bases.iter().filter(|base| *base == "http://10.0.0.7:1").count(), 5);
    client.lost("users", "http://10.0.0.7:1");
    client.refresh().await.unwrap();
    assert!((0..4).all(|_| client.locate("users").ends_with(":2")), "it was not heard of since");
    tokio::time::sleep(Duration::from_millis(5)).await;
    gateway.registry.heartbeat("users", "i1");
    client.refresh().await.unwrap();
    assert!((0..2).any(|_| client.locate("users").ends_with(":1")));
    stop.cancel();
    running.await.unwrap();
    assert!(gateway.registry.instances("users").is_empty(), "who ends says so");
}
