//! `watch`: where an order stands and each change, until it is over; asked of order-service by gRPC.

use std::io::Write;

use order_grpc::{
    endpoint,
    proto::orders::{OrderRequest, order_service_client::OrderServiceClient},
};
use order_kit::BoxError;
use tonic::Request;

use crate::remote::Remote;

/// Prints a line for each, when it comes.
///
/// # Errors
///
/// That there is no such order, or the service ends or breaks before it is over.
pub async fn watch(remote: &Remote, id: &str, out: &mut impl Write) -> Result<(), BoxError> {
    let url = remote.url("orders.grpc");
    let channel =
        endpoint(url)?.connect().await.map_err(|error| format!("no connection to {url}: {error}"))?;
    let mut request = Request::new(OrderRequest { id: id.to_owned() });
    request.metadata_mut().insert("x-service-token", remote.service_token().parse()?);
    let said = |status: tonic::Status| status.message().to_owned();
    let asked = OrderServiceClient::new(channel).watch_order(request).await;
    let mut stream = asked.map_err(said)?.into_inner();
    while let Some(change) = stream.message().await.map_err(said)? {
        let status = change.status().as_str_name().trim_start_matches("STATUS_").to_lowercase();
        writeln!(out, "{}  {status:<15}  {}", change.at, change.reason)?;
        out.flush()?;
    }
    Ok(())
}
