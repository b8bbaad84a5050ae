//! `schedule ...`.

use chrono::Utc;
use serde_json::json;
use swarm_client::Client;
use swarm_protocol::ScheduleId;
use swarm_protocol::api::ScheduleRequest;
use swarm_protocol::text::sanitise;

use crate::cli::{ScheduleCommand, ScheduleCreate};
use crate::exit::Exit;
use crate::failure::{Done, Failure};
use crate::output::{Format, show};
use crate::views::{Said, Schedule, Schedules};

pub(crate) async fn run(client: &Client, command: ScheduleCommand, format: Format) -> Done<u8> {
    match command {
        ScheduleCommand::Create(create) => show(format, &self::create(client, &create).await?)?,
        ScheduleCommand::Ls(_) => show(format, &Schedules(client.schedules().await?.items))?,
        ScheduleCommand::Show(one) => {
            let id = find(client, &one.schedule).await?;
            show(format, &Schedule(client.schedule(id).await?))?;
        }
        ScheduleCommand::Pause(one) => {
            let id = find(client, &one.schedule).await?;
            show(format, &Schedule(client.pause_schedule(id).await?))?;
        }
        ScheduleCommand::Resume(one) => {
            let id = find(client, &one.schedule).await?;
            show(format, &Schedule(client.resume_schedule(id).await?))?;
        }
        ScheduleCommand::Trigger(one) => {
            let id = find(client, &one.schedule).await?;
            show(format, &client.trigger_schedule(id).await?)?;
        }
        ScheduleCommand::Delete(one) => {
            let id = find(client, &one.schedule).await?;
            client.delete_schedule(id).await?;
            let text = format!("schedule {} is deleted; jobs it made stay", one.schedule);
            show(format, &Said { text, json: json!({"deleted": id}), id: id.to_string() })?;
        }
    }
    Ok(0)
}

async fn create(client: &Client, create: &ScheduleCreate) -> Done<Schedule> {
    let draft = create.spec.draft(Utc::now())?;
    let written = draft.schedule().cloned();
    let cron = create.cron.clone().or_else(|| written.as_ref().map(|schedule| schedule.cron.clone()));
    let cron = cron.ok_or_else(|| {
        Failure::usage("it is not said when the job is made").hint("give --cron FIELDS, or a job file with `schedule`")
    })?;
    let zone = create.zone.clone().or_else(|| written?.zone);
    let request = ScheduleRequest {
        name: create.schedule.clone(),
        cron,
        zone: zone.unwrap_or_else(|| "UTC".to_owned()),
        spec: draft.complete(client).await?,
    };
    Ok(Schedule(client.create_schedule(&request).await?))
}

/// A number is taken as it is; a name is looked up.
async fn find(client: &Client, word: &str) -> Done<ScheduleId> {
    if let Ok(id) = word.parse() {
        return Ok(id);
    }
    let all = client.schedules().await?;
    let found = all.items.into_iter().find(|schedule| schedule.name == word);
    found.map(|schedule| schedule.id).ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("there is no schedule `{}`", sanitise(word, false)))
            .hint("`schedule ls` lists them")
    })
}
