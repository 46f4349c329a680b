//! The program `mainstay-saga` and encryption: in front of the server stands one that ends TLS, with certificates that are made here.

use std::{
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::{Config, NoTls, config::Host};
use tokio_rustls::{TlsAcceptor, rustls};

/// The name that the server's certificate is for.
const NAME: &str = "db.test";

/// What a server says whose `pg_hba.conf` lets in only who encrypts.
const NO_ENCRYPTION: &str =
    "no pg_hba.conf entry for host \"127.0.0.1\", user \"ann\", database \"shop\", no encryption";

/// A directory that goes when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mainstay-cli-tls-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Ends TLS with a certificate for [`NAME`].
    fn acceptor(&self) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// How it answers, and who has come.
#[derive(Default)]
struct Front {
    /// With it, encryption is offered.
    tls: Option<TlsAcceptor>,
    /// Where those go who are let in.
    server: Option<String>,
    encrypted: AtomicUsize,
    plain: AtomicUsize,
}

impl Front {
    async fn start(self) -> (Arc<Front>, u16) {
        let front = Arc::new(self);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = front.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let front = serving.clone();
                // A client that goes away is no failure.
                tokio::spawn(async move { drop(front.serve(stream).await) });
            }
        });
        (front, port)
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut first = [0];
        stream.peek(&mut first).await?;
        if let (Some(tls), [0x16]) = (&self.tls, first) {
            // A handshake without a word before it has to say what it is for.
            self.encrypted.fetch_add(1, SeqCst);
            let stream = tls.accept(stream).await?;
            return match stream.get_ref().1.alpn_protocol() {
                Some(b"postgresql") => self.admit(stream, &[]).await,
                _ => Ok(()),
            };
        }
        let mut head = [0; 8];
        stream.read_exact(&mut head).await?;
        if head[4..] == 80_877_103_u32.to_be_bytes() {
            if let Some(tls) = &self.tls {
                self.encrypted.fetch_add(1, SeqCst);
                stream.write_all(b"S").await?;
                return self.admit(tls.accept(stream).await?, &[]).await;
            }
            stream.write_all(b"N").await?;
            stream.read_exact(&mut head).await?;
        }
        self.plain.fetch_add(1, SeqCst);
        self.admit(stream, &head).await
    }

    /// To the server; without one, nobody is let in.
    async fn admit(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        head: &[u8],
    ) -> std::io::Result<()> {
        let Some(server) = &self.server else {
            let fields = format!("SFATAL\0VFATAL\0C28000\0M{NO_ENCRYPTION}\0\0");
            stream.write_u8(b'E').await?;
            stream.write_u32(u32::try_from(fields.len() + 4).unwrap()).await?;
            stream.write_all(fields.as_bytes()).await?;
            return stream.shutdown().await;
        };
        let mut server = TcpStream::connect(server).await?;
        server.write_all(head).await?;
        copy_bidirectional(&mut stream, &mut server).await.map(drop)
    }

    /// How many have come encrypted, and how many not, since this was asked before.
    fn came(&self) -> (usize, usize) {
        (self.encrypted.swap(0, SeqCst), self.plain.swap(0, SeqCst))
    }
}

/// What the program said.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

/// `list`, with the options and variables that matter here.
async fn list(store: &str, options: &[&str], variables: &[(&str, &str)]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay-saga"));
    for name in
        ["MAINSTAY_SAGA_STORE", "MAINSTAY_SAGA_SCHEMA", "MAINSTAY_SAGA_CA", "SSL_CERT_FILE", "SSL_CERT_DIR"]
    {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).args(["--store", store, "list"]).args(options);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The address of a front, by a name; more settings stand behind it.
fn address(port: u16, name: &str) -> String {
    format!("postgres:host={name} hostaddr=127.0.0.1 port={port} user=ann dbname=shop")
}

/// A schema that is gone after the test, also after one that failed.
struct Dropped {
    url: String,
    schema: String,
}

impl Drop for Dropped {
    fn drop(&mut self) {
        let (url, drop) = (self.url.clone(), format!("drop schema if exists {} cascade", self.schema));
        // A thread of its own: the test's is within a runtime.
        let done = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute(&drop).await.unwrap();
            });
        });
        let _ = done.join();
    }
}

/// Needs a server, which `MAINSTAY_TEST_POSTGRES` names.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_encrypted_and_verified_as_the_address_says() {
    let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
        eprintln!("skipped: MAINSTAY_TEST_POSTGRES is not set");
        return;
    };
    let config: Config = url.parse().unwrap();
    let [Host::Tcp(host)] = config.get_hosts() else { panic!("the server is not reached by TCP") };
    let server = format!("{host}:{}", config.get_ports().first().unwrap_or(&5432));
    let (directory, authority) = (Directory::new("accepted"), Authority::new("known"));
    let ca = directory.file("ca.pem", &authority.0.pem());
    let tls = Some(authority.acceptor());
    let (front, port) = Front { tls, server: Some(server), ..Front::default() }.start().await;
    let user = config.get_user().unwrap_or("postgres");
    let database = config.get_dbname().unwrap_or(user);
    let mut store =
        format!("postgres:host={NAME} hostaddr=127.0.0.1 port={port} user={user} dbname={database}");
    if let Some(password) = config.get_password() {
        store += &format!(" password='{}'", std::str::from_utf8(password).unwrap());
    }
    let schema = format!("mainstay_cli_tls_{}", std::process::id());
    let _gone = Dropped { url: url.clone(), schema: schema.clone() };
    drop(mainstay::saga::postgres::Postgres::connect(&url).schema(&schema).await.unwrap());

    let given = ["--ca", &ca];
    let require = "sslmode=require";
    for (settings, options, variable, encrypted) in [
        (require, &given[..], None, true),
        (require, &[], Some("MAINSTAY_SAGA_CA"), true),
        // In place of the system's.
        (require, &[], Some("SSL_CERT_FILE"), true),
        ("sslmode=require sslnegotiation=direct", &given, None, true),
        ("", &given, None, true),
        // Nobody knows who has signed it.
        ("", &[], None, true),
        ("sslmode=prefer", &[], None, true),
        ("sslmode=disable", &[], None, false),
    ] {
        let options: Vec<&str> = options.iter().copied().chain(["--schema", &schema]).collect();
        let variables: Vec<(&str, &str)> = variable.map(|name| (name, &*ca)).into_iter().collect();
        let said = list(&format!("{store} {settings}"), &options, &variables).await;
        assert!(said.code == 0 && said.out.starts_with("id "), "{settings} {options:?}: {said:?}");
        match front.came() {
            (1.., 0) if encrypted => {}
            (0, 1..) if !encrypted => {}
            came => panic!("{settings} {options:?}: {came:?} have come"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_proves_nothing_is_refused_at_once() {
    let (directory, authority) = (Directory::new("refused"), Authority::new("known"));
    let ca = directory.file("ca.pem", &authority.0.pem());
    let other = directory.file("other.pem", &Authority::new("other").0.pem());
    let (front, port) = Front { tls: Some(authority.acceptor()), ..Front::default() }.start().await;

    let by_name = address(port, NAME);
    let required = format!("{by_name} sslmode=require");
    let unknown = "invalid peer certificate: UnknownIssuer; sslmode=require wants a certificate that";
    let misnamed = format!("{} sslmode=require", address(port, "other.test"));
    for (store, options, variables, why) in [
        (&required, &["--ca", &other][..], &[][..], unknown),
        // Whoever names roots wants them asked.
        (&by_name, &["--ca", &other], &[], unknown),
        (&required, &[], &[("SSL_CERT_FILE", &*other)], unknown),
        (&misnamed, &["--ca", &ca], &[], "not valid for name \"other.test\"; certificate is only valid for"),
    ] {
        let said = list(store, options, variables).await;
        assert!(said.code == 1 && said.out.is_empty(), "{store} {options:?}: {said:?}");
        assert!(said.err.contains(why) && said.err.contains("--ca FILE"), "{store} {options:?}: {said:?}");
        assert_eq!(front.came(), (1, 0), "{store} {options:?}: another try would say the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_to_do() {
    let (front, port) =
        Front { tls: Some(Authority::new("known").acceptor()), ..Front::default() }.start().await;
    let store = address(port, NAME);
    let said = list(&format!("{store} sslmode=disable"), &[], &[]).await;
    assert!(said.code == 1 && said.err.contains(NO_ENCRYPTION), "{said:?}");
    let todo = "the address says sslmode=disable, and the server wants an encrypted connection: say sslmode=require\n";
    assert!(said.err.ends_with(todo), "{said:?}");
    assert_eq!(front.came(), (0, 1));

    let (front, port) = Front::default().start().await;
    let store = address(port, NAME);
    let (directory, ca) = (Directory::new("says"), Authority::new("known").0.pem());
    let ca = directory.file("ca.pem", &ca);
    let said = list(&store, &["--ca", &ca], &[]).await;
    let todo = "server does not support TLS; turn its `ssl` on, or say sslmode=disable if nobody can listen on the way\n";
    assert!(said.code == 1 && said.err.ends_with(todo), "{said:?}");
    assert_eq!(front.came(), (0, 0));
    let said = list(&store, &[], &[]).await;
    assert!(said.code == 1 && said.err.contains(NO_ENCRYPTION), "{said:?}");
    assert_eq!(front.came(), (0, 1), "what is preferred is done without");

    let none = directory.file("none.pem", "no certificate");
    for (settings, ca, why) in [
        (
            "sslmode=disable",
            &*ca,
            "--ca, or MAINSTAY_SAGA_CA, is for an encrypted connection, and the address says sslmode=disable",
        ),
        ("", &none, "none.pem: there is no certificate in it"),
        ("", "/nowhere.pem", "--ca /nowhere.pem: "),
        (
            "sslmode=verify-full",
            &ca,
            "sslmode is disable, prefer or require, and roots are given by --ca FILE",
        ),
        ("sslrootcert=ca.pem", &ca, "`sslrootcert`; sslmode is disable, prefer or require"),
    ] {
        let said = list(&format!("{store} {settings}"), &["--ca", ca], &[]).await;
        assert!(said.code == 1 && said.err.contains(why), "{settings}: {said:?}");
        assert_eq!(front.came(), (0, 0), "{settings}");
    }
}
