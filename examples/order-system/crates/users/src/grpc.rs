//! Users over gRPC: one is asked for.

use order_grpc::{
    proto::users::{
        UserRequest, UserResponse,
        user_service_server::{UserService, UserServiceServer},
    },
    server::{self, REQUEST_LIMIT, call, status},
};
use order_kit::{BoxError, Context};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::{repository::Users, wire::User};

/// Serves users over [gRPC](server::serve), until the context's stop.
///
/// # Errors
///
/// A database that cannot be opened, or a listener that breaks.
pub async fn serve_grpc(context: Context, listener: TcpListener) -> Result<(), BoxError> {
    let users = Users::of(&context).await?;
    let service = UserServiceServer::new(Grpc { context: context.clone(), users })
        .max_decoding_message_size(REQUEST_LIMIT);
    server::serve(context, listener, service).await
}

struct Grpc {
    context: Context,
    users: Users,
}

#[tonic::async_trait]
impl UserService for Grpc {
    async fn get_user(&self, request: Request<UserRequest>) -> Result<Response<UserResponse>, Status> {
        let (metadata, _, UserRequest { id }) = request.into_parts();
        let work = async {
            let user = self.users.find(id).await.map_err(status)?;
            let user = user.ok_or_else(|| Status::not_found("User not found"))?;
            Ok(Response::new(user.into()))
        };
        call(&self.context, "UserService/GetUser", &metadata, work).await
    }
}

impl From<User> for UserResponse {
    fn from(user: User) -> Self {
        UserResponse { id: user.id, name: user.name, email: user.email, created_at: user.created_at }
    }
}
