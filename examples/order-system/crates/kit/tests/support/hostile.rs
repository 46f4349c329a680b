//! What a service is sent by those who mean it no good, and what happens to the servers that it needs. Beside `service.rs`.
#![allow(dead_code, missing_docs)]

use serde_json::Value;

use crate::service::Answer;

/// Bodies that no route takes, with what is wrong with them.
pub fn bad_bodies() -> Vec<(&'static str, Vec<u8>, u16)> {
    let bad = 400;
    vec![
        ("nothing", b"".to_vec(), bad),
        ("half an object", b"{\"name\":\"Al".to_vec(), bad),
        ("no JSON", b"name=Alice".to_vec(), bad),
        ("a list", b"[]".to_vec(), bad),
        ("a list in the order of fields", b"[\"Alice\",\"alice@example.org\"]".to_vec(), bad),
        ("another", b"[\"Teapot\",\"12.50\"]".to_vec(), bad),
        ("null", b"null".to_vec(), bad),
        ("a text", b"\"Alice\"".to_vec(), bad),
        ("two values", b"{}{}".to_vec(), bad),
        ("no UTF-8", b"{\"name\":\"\xff\xfe\"}".to_vec(), bad),
        ("a number too large", b"{\"name\":1e999}".to_vec(), bad),
        ("deep nesting", [b"{\"name\":".as_slice(), &vec![b'['; 100_000]].concat(), bad),
        ("too much", vec![b' '; 300 * 1024], 413),
    ]
}

/// Words that stand in errors of databases, drivers and this code, and in no answer. And an error says one thing.
pub fn leaks_nothing(answer: &Answer) {
    if answer.status >= 400 {
        assert_eq!(answer.body.as_object().map(|fields| fields.len()), Some(1), "{}", answer.text);
        assert!(answer.body["error"].is_string(), "{}", answer.text);
    }
    let text = answer.text.to_lowercase();
    for word in [
        "select ",
        "insert ",
        "update ",
        "from users",
        "from product",
        "table",
        "struct ",
        "sqlite",
        "postgres",
        "redis",
        "127.0.0.1",
        "/tmp",
        ".db",
        "::",
        "panick",
        "connection",
    ] {
        assert!(!text.contains(word), "`{word}` in {}", answer.text);
    }
}

/// Stands before a server, so that a test can take it away.
pub struct Proxy {
    address: std::net::SocketAddr,
    open: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    /// In front of the server of a URL with a host and a port.
    pub async fn to_url(url: &str) -> Self {
        let server = authority(url).to_owned();
        Proxy::to(server).await
    }

    pub async fn to(server: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, is_open) = tokio::sync::watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (server, mut is_open) = (server.clone(), is_open.clone());
                tokio::spawn(async move {
                    if !*is_open.borrow_and_update() {
                        return;
                    }
                    let Ok(mut far) = tokio::net::TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_open.changed() => {}
                    }
                });
            }
        });
        Proxy { address, open }
    }

    /// The URL with the proxy in the server's place.
    pub fn url(&self, url: &str) -> String {
        url.replacen(authority(url), &self.address.to_string(), 1)
    }

    /// Ends all connections and makes no more.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

/// `host:port` of `scheme://user:password@host:port/more`.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |it| it.1);
    let rest = rest.split(['/', '?']).next().unwrap_or(rest);
    rest.rsplit_once('@').map_or(rest, |it| it.1)
}

/// Chance that is the same in every run.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, limit: u64) -> u64 {
        // Splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.below(24)).map(|_| self.below(256) as u8).collect()
    }

    /// Any bytes, as an address may hold them.
    pub fn escaped(&mut self) -> String {
        self.bytes().iter().map(|byte| format!("%{byte:02X}")).collect()
    }

    fn value(&mut self) -> Value {
        match self.below(8) {
            0 => Value::Null,
            1 => (self.below(2) == 0).into(),
            2 => (self.below(u64::MAX) as i64).into(),
            3 => (self.below(1_000_000) as f64 / 997.0).into(),
            4 => vec![self.below(9)].into(),
            5 => format!("{}@", String::from_utf8_lossy(&self.bytes())).into(),
            6 => format!("-{}.{}", self.below(1_000), self.below(1_000)).into(),
            _ => String::from_utf8_lossy(&self.bytes()).into(),
        }
    }

    /// An object with some of these fields; once in a while something else.
    pub fn body(&mut self, fields: &[&str]) -> Vec<u8> {
        if self.below(8) == 0 {
            return self.bytes();
        }
        let mut body = serde_json::Map::new();
        for field in fields {
            if self.below(8) != 0 {
                body.insert((*field).to_owned(), self.value());
            }
        }
        Value::from(body).to_string().into_bytes()
    }
}
