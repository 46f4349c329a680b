//! Users, whatever the system speaks.

use http::StatusCode;
use order_kit::{
    BoxError, Context,
    client::{CallError, Client},
    env,
    health::Check,
};

use crate::{GrpcUsers, Options, User};

/// Who asks for users; clones share the connections and all policies. What comes of a question is the same by both transports: the user, that
/// there is none, or that nobody knows.
#[derive(Debug, Clone)]
pub enum Users {
    /// By `GET /users/{id}`.
    Http(Client),
    /// By `UserService.GetUser`.
    Grpc(Box<GrpcUsers>),
}

impl Users {
    /// As `USER_TRANSPORT` says.
    ///
    /// # Errors
    ///
    /// A transport that nobody knows, an option that cannot be, or a `USER_GRPC_URL` that is none.
    pub fn new(context: &Context, options: Options) -> Result<Self, BoxError> {
        match context.env().get_or_default(env::USER_TRANSPORT).as_str() {
            "http" => Ok(Users::Http(Client::new(context, "user", options)?)),
            "grpc" => Ok(Users::Grpc(Box::new(GrpcUsers::new(context, options)?))),
            other => Err(format!("USER_TRANSPORT is {other:?}: http or grpc are possible").into()),
        }
    }

    /// That the service is well, by whichever transport: whoever asks does less without it, and can be given work all the same.
    pub fn check(&self) -> Check {
        let users = self.clone();
        Check::optional("userService", move || {
            let users = users.clone();
            async move {
                match users {
                    Users::Http(users) => users.alive().await,
                    Users::Grpc(users) => users.alive().await,
                }
            }
        })
    }

    /// The user with that id, or `None` if the service knows none.
    ///
    /// # Errors
    ///
    /// [`CallError`]: nobody knows.
    pub async fn find(&self, id: &str) -> Result<Option<User>, CallError> {
        match self {
            Users::Grpc(users) => Ok(users.get(id).await?),
            Users::Http(users) => {
                let reply = users.get(&format!("/users/{}", in_path(id))).await?;
                if reply.status == StatusCode::NOT_FOUND {
                    return Ok(None);
                }
                reply.success()?.json().map(Some)
            }
        }
    }
}

/// An id as one segment of a path, whatever it holds.
fn in_path(id: &str) -> String {
    id.bytes().fold(String::with_capacity(id.len()), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
        path
    })
}
