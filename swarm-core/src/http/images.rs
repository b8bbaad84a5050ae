//! Images: archives come in, names point at what is stored.

use std::sync::Arc;

use rocket::data::Data;
use rocket::response::status::NoContent;
use rocket::serde::json::Json;
use rocket::{State, delete, get, post};
use serde::Deserialize;
use swarm_protocol::Digest;
use swarm_protocol::api::{ImageView, Page};
use swarm_protocol::link::{ImageOrder, LayerOrder};

use super::guards::{Body, Consumer, User, With, created, param};
use super::openapi::NotFound;
use super::problem::{Answer, Failure, invalid, not_found};
use super::transfer::receive;
use super::{ApiState, Uploads};
use crate::identity::Account;
use crate::images::{ImageRef, ImportedImage, import};
use crate::store::{ImageRecord, NewImage, Refusal, Transition};

/// `POST /images/{digest}/tags`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TagRequest {
    /// `name:tag`.
    name: String,
}

fn view(record: &ImageRecord) -> ImageView {
    ImageView {
        name: record.name.clone(),
        config_digest: record.image.config,
        size_bytes: record.image.layers.iter().map(|layer| layer.size_bytes).sum(),
        platform: record.platform.clone(),
        pushed_at: record.pushed_at,
    }
}

/// `name[:tag]`, the tag spelt out; a digest is no name.
fn tag_name(text: &str) -> Answer<String> {
    match text.parse::<ImageRef>() {
        Ok(name @ ImageRef::Tagged { .. }) => Ok(name.to_string()),
        Ok(ImageRef::Config(_)) => Err(invalid("name", "is a digest", "give a name such as `tools/encoder:1.2`")),
        Err(error) => Err(invalid("name", error.to_string(), "give a name such as `tools/encoder:1.2`")),
    }
}

fn order(image: &ImportedImage) -> ImageOrder {
    let layer = |layer: &crate::images::Layer| LayerOrder {
        digest: layer.digest,
        diff_id: layer.diff_id,
        size_bytes: layer.size_bytes,
    };
    ImageOrder {
        config: image.config_digest,
        config_bytes: image.config_size_bytes,
        layers: image.layers.iter().map(layer).collect(),
    }
}

/// The name asked for, or the only one in the archive.
fn choose_name(asked: Option<String>, image: &ImportedImage) -> Answer<String> {
    match (asked, image.names.as_slice()) {
        (Some(name), _) => Ok(name),
        (None, [one]) => tag_name(one),
        (None, names) => {
            let problem = format!("is needed, for the archive names {} images", names.len());
            Err(invalid("name", problem, "add `?name=NAME:TAG`"))
        }
    }
}

async fn name_image(state: &ApiState, account: &Account, record: ImageRecord) -> Answer<ImageView> {
    let ImageRecord { name, image, platform, pushed_at } = record.clone();
    let new = NewImage { group: account.group, name, image, platform, pushed_at };
    state.commit(Transition::TagImage(Box::new(new))).await??;
    Ok(view(&record))
}

/// Uploads an image
///
/// An archive of `docker save`, or an OCI archive.
#[utoipa::path(
    tag = "images",
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The bytes"),
    security(("account" = ["consumer"])),
    params(("name" = Option<String>, Query, description = "`name:tag`; the archive's own when it has one alone")),
    responses((status = 201, body = ImageView, description = "It can be used")),
)]
#[post("/images?<name>", data = "<data>")]
pub(super) async fn upload(
    consumer: Consumer,
    name: Option<&str>,
    data: Data<'_>,
    state: &State<Arc<ApiState>>,
    uploads: &State<Uploads>,
) -> Answer<With<Json<ImageView>>> {
    let asked = name.map(tag_name).transpose()?;
    let (blobs, limits) = (Arc::clone(&state.blobs), state.config.image_limits());
    let turn = uploads.users.take(consumer.0.id).await?;
    let image = receive(state, turn, data, limits.archive_bytes_max, move |pipe| {
        import(pipe, &*blobs, &limits).map_err(Failure::from)
    })
    .await?;
    let name = choose_name(asked, &image)?;
    let platform = format!("{}/{}", image.config.os, image.config.architecture);
    let record = ImageRecord { name, image: order(&image), platform, pushed_at: state.clock.now() };
    Ok(created(name_image(state, &consumer.0, record).await?))
}

/// The group's images
#[utoipa::path(
    tag = "images",
    security(("account" = ["viewer"])),
    responses((status = 200, body = Page<ImageView>, description = "Every name")),
)]
#[get("/images")]
pub(super) async fn list(user: User, state: &State<Arc<ApiState>>) -> Answer<Json<Page<ImageView>>> {
    let group = user.account.group;
    let records = state.read(move |store| store.images(group)).await?;
    Ok(Json(Page { items: records.iter().map(view).collect(), next: None }))
}

async fn stored(state: &ApiState, account: &Account, digest: &str) -> Answer<ImageRecord> {
    let digest: Digest = param("digest", digest)?;
    let group = account.group;
    let record = state.read(move |store| store.image(group, &digest.to_string())).await?;
    record.ok_or_else(|| not_found("image", digest))
}

/// An image
#[utoipa::path(
    tag = "images",
    security(("account" = ["viewer"])),
    responses((status = 200, body = ImageView, description = "The image")),
)]
#[get("/images/<digest>")]
pub(super) async fn get(user: User, digest: &str, state: &State<Arc<ApiState>>) -> Answer<Json<ImageView>> {
    Ok(Json(view(&stored(state, &user.account, digest).await?)))
}

/// Gives an image another name
#[utoipa::path(
    tag = "images",
    request_body = TagRequest,
    security(("account" = ["consumer"])),
    responses((status = 200, body = ImageView, description = "The image by that name")),
)]
#[post("/images/<digest>/tags", data = "<body>")]
pub(super) async fn tag(
    consumer: Consumer,
    digest: &str,
    body: Body<TagRequest>,
    state: &State<Arc<ApiState>>,
) -> Answer<Json<ImageView>> {
    let name = tag_name(&body.value.name)?;
    let stored = stored(state, &consumer.0, digest).await?;
    let record = ImageRecord { name, pushed_at: state.clock.now(), ..stored };
    Ok(Json(name_image(state, &consumer.0, record).await?))
}

/// Takes a name away
#[utoipa::path(
    tag = "images",
    security(("account" = ["consumer"])),
    params(("name" = String, Query, description = "`name:tag`")),
    responses((status = 204, description = "The name is free"), NotFound),
)]
#[delete("/images?<name>")]
pub(super) async fn untag(consumer: Consumer, name: Option<&str>, state: &State<Arc<ApiState>>) -> Answer<NoContent> {
    let name = name.ok_or_else(|| invalid("name", "is missing", "add `?name=NAME:TAG`"))?;
    let name = tag_name(name)?;
    let group = consumer.0.group;
    let untag = Transition::UntagImage { group, name: name.clone() };
    match state.commit(untag).await? {
        Ok(_) => Ok(NoContent),
        Err(Refusal::NotFound(_)) => Err(not_found("image", name)),
        Err(refusal) => Err(refusal.into()),
    }
}
