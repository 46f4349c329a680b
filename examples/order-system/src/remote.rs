//! A system as a person or a demonstration sees it: by HTTP alone. For a system in this process, in others, or elsewhere.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use order_kit::{
    BoxError,
    context::{GRPC, Known, LISTENERS, SERVICES},
    env::Env,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::system::System;

/// How long a request may take, unless it says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody outside the system.
#[derive(Clone)]
pub struct Remote {
    urls: BTreeMap<String, String>,
    http: Client<HttpConnector, Full<bytes::Bytes>>,
    service_token: String,
    user_token: Option<String>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(&self.urls).finish()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as it came.
    pub text: String,
}

impl Answer {
    /// The body as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// The body as that type.
    ///
    /// # Errors
    ///
    /// That it is not.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, BoxError> {
        serde_json::from_str(&self.text)
            .map_err(|error| format!("{error} in {}: {}", self.status, self.text).into())
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The answer, if it has this status.
    ///
    /// # Errors
    ///
    /// That it has another.
    pub fn expect(self, status: u16) -> Result<Answer, BoxError> {
        if self.status.as_u16() == status {
            Ok(self)
        } else {
            Err(format!("expected {status}, got {}: {}", self.status, self.text).into())
        }
    }
}

impl Remote {
    /// Of the documented ports, moved by a base, and wherever a variable says otherwise.
    pub fn at(port_base: u16, env: &Env) -> Self {
        let url = |it: &Known| {
            let set = env.get(it.variable).map(|url| url.trim_end_matches('/').to_owned());
            set.unwrap_or_else(|| format!("http://127.0.0.1:{}", it.port(port_base)))
        };
        let all = SERVICES.iter().chain(LISTENERS).chain(GRPC);
        Remote::of(all.map(|it| (it.name.to_owned(), url(it))).collect(), env)
    }

    /// Of a system in this process.
    pub fn to(system: &System) -> Self {
        let urls =
            system.parts().map(|(part, address)| (part.to_owned(), format!("http://{address}"))).collect();
        Remote::of(urls, &system.options().env)
    }

    /// Of services at these base URLs.
    pub fn of(urls: BTreeMap<String, String>, env: &Env) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Remote {
            urls,
            http: Client::builder(TokioExecutor::new()).build(connector),
            service_token: order_kit::auth::ServiceTokens::of(env).send().to_owned(),
            user_token: None,
        }
    }

    /// What is shown to services.
    pub fn service_token(&self) -> &str {
        &self.service_token
    }

    /// The base URL of a service.
    pub fn url(&self, service: &str) -> &str {
        self.urls.get(service).map_or("http://127.0.0.1:9", String::as_str)
    }

    /// Moves a service, which has been started anew elsewhere.
    pub fn moved(&mut self, service: &str, url: String) {
        self.urls.insert(service.to_owned(), url);
    }

    /// Gets a token of the gateway for this user, who has no role; it is shown from then on.
    ///
    /// # Errors
    ///
    /// That there is none.
    pub async fn log_in(&mut self, user: &str) -> Result<(), BoxError> {
        self.log_in_as(user, &[]).await
    }

    /// The same for a user with roles.
    ///
    /// # Errors
    ///
    /// That there is no such token.
    pub async fn log_in_as(&mut self, user: &str, roles: &[&str]) -> Result<(), BoxError> {
        let wanted = json!({ "userId": user, "roles": roles });
        let answer = self.post("gateway", "/auth/token", wanted).await?.expect(200)?;
        let token = answer.json()["token"].as_str().ok_or("no token in the answer")?.to_owned();
        self.user_token = Some(token);
        Ok(())
    }

    /// The same for another user, whose token is shown.
    ///
    /// # Errors
    ///
    /// That there is none.
    pub async fn as_user(&self, user: &str) -> Result<Remote, BoxError> {
        let mut remote = self.clone();
        remote.log_in(user).await?;
        Ok(remote)
    }

    /// The token that is shown to the gateway.
    pub fn token(&self) -> Option<&str> {
        self.user_token.as_deref()
    }

    /// `GET` of a service.
    ///
    /// # Errors
    ///
    /// That there is no answer.
    pub async fn get(&self, service: &str, path: &str) -> Result<Answer, BoxError> {
        self.call(Method::GET, service, path, None).await
    }

    /// `POST` to a service.
    ///
    /// # Errors
    ///
    /// That there is no answer.
    pub async fn post(&self, service: &str, path: &str, body: Value) -> Result<Answer, BoxError> {
        self.call(Method::POST, service, path, Some(body)).await
    }

    /// `PUT` to a service.
    ///
    /// # Errors
    ///
    /// That there is no answer.
    pub async fn put(&self, service: &str, path: &str, body: Value) -> Result<Answer, BoxError> {
        self.call(Method::PUT, service, path, Some(body)).await
    }

    /// Any request, with what the service wants to be shown.
    ///
    /// # Errors
    ///
    /// That there is no answer.
    pub async fn call(
        &self,
        method: Method,
        service: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, BoxError> {
        let mut headers = HeaderMap::new();
        if body.is_some() {
            headers.insert("content-type", HeaderValue::from_static("application/json"));
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.send(method, service, path, headers, body).await
    }

    /// Any request with these headers; tokens are added where there are none.
    ///
    /// # Errors
    ///
    /// That there is no answer.
    pub async fn send(
        &self,
        method: Method,
        service: &str,
        path: &str,
        mut headers: HeaderMap,
        body: String,
    ) -> Result<Answer, BoxError> {
        match &self.user_token {
            Some(token)
                if service == "gateway"
                    && path.starts_with("/api")
                    && !headers.contains_key("authorization") =>
            {
                headers.insert("authorization", format!("Bearer {token}").parse()?);
            }
            _ => {
                headers.insert("x-service-token", self.service_token.parse()?);
            }
        }
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url(service)))
            .body(Full::new(bytes::Bytes::from(body)))?;
        request.headers_mut().extend(headers);
        let answer = async {
            let (parts, body) = self.http.request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, BoxError>(Answer {
                status: parts.status,
                headers: parts.headers,
                text: String::from_utf8_lossy(&body).into_owned(),
            })
        };
        tokio::time::timeout(PATIENCE, answer).await.map_err(|_| format!("no answer of {service} in 30 s"))?
    }

    /// Asks until the answer is as wanted.
    ///
    /// # Errors
    ///
    /// The last answer, when the time is over.
    pub async fn until(
        &self,
        time: Duration,
        service: &str,
        path: &str,
        wanted: impl Fn(&Answer) -> bool,
    ) -> Result<Answer, BoxError> {
        let end = tokio::time::Instant::now() + time;
        loop {
            let answer = self.get(service, path).await;
            match answer {
                Ok(answer) if wanted(&answer) => return Ok(answer),
                answer if tokio::time::Instant::now() >= end => {
                    let last = answer
                        .map_or_else(|error| error.to_string(), |it| format!("{} {}", it.status, it.text));
                    return Err(format!(
                        "{service}{path} did not become what it should within {time:?}: {last}"
                    )
                    .into());
                }
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}
