//! From a spec as it came to a job that can be committed: every field checked, the image pinned, the inputs found.

use swarm_protocol::GroupId;
use swarm_protocol::api::Submitted;
use swarm_protocol::link::ImageOrder;
use swarm_protocol::problem::{FieldError, Problem};
use swarm_protocol::spec::JobSpec;
use swarm_protocol::validate::validate;

use super::problem::{Answer, Failure, conflict};
use super::{ApiState, ask};
use crate::clock::truncate;
use crate::identity::Account;
use crate::images::ImageRef;
use crate::messages::ReceiverMsg;
use crate::store::{Applied, NewJob, Refusal, Store, StoreError};

/// A spec that may be run: what it refers to exists and is its group's.
pub(super) struct Prepared {
    pub(super) spec: JobSpec,
    pub(super) image: ImageOrder,
    pub(super) input_bytes: Vec<u64>,
}

/// Checks a spec and looks up what it refers to. Errors name every wrong field; `prefix` goes before their paths.
pub(super) async fn prepare(state: &ApiState, group: GroupId, mut spec: JobSpec, prefix: &str) -> Answer<Prepared> {
    spec.start_at = spec.start_at.map(truncate);
    let mut faults = validate(&spec).err().unwrap_or_default();
    let known = state.read(move |store| resolve(store, group, spec)).await?;
    let (spec, image, input_bytes, unresolved) = known;
    // A field that is malformed is not also reported as unknown.
    faults.extend(unresolved.into_iter().filter(|fault| faults_lack(&faults, &fault.field)).collect::<Vec<_>>());
    match image {
        Some(image) if faults.is_empty() => Ok(Prepared { spec, image, input_bytes }),
        _ => {
            faults.iter_mut().for_each(|fault| fault.field.insert_str(0, prefix));
            Err(Problem::invalid(faults).into())
        }
    }
}

fn faults_lack(faults: &[FieldError], field: &str) -> bool {
    faults.iter().all(|fault| fault.field != field)
}

type Resolved = (JobSpec, Option<ImageOrder>, Vec<u64>, Vec<FieldError>);

fn resolve(store: &dyn Store, group: GroupId, spec: JobSpec) -> Result<Resolved, StoreError> {
    let mut faults = Vec::new();
    let image = match spec.image.parse::<ImageRef>() {
        Err(error) => {
            faults.push(FieldError::new("image", error.to_string(), "name an image uploaded with `image push`"));
            None
        }
        Ok(reference) => {
            let found = store.image(group, &reference.to_string())?;
            if found.is_none() {
                let hint = "upload it with `image push`, or see `image ls` for what is there";
                faults.push(FieldError::new("image", format!("there is no image {reference} in your group"), hint));
            }
            found.map(|record| record.image)
        }
    };
    let mut sizes = Vec::new();
    for (at, input) in spec.inputs.iter().enumerate().take(swarm_protocol::validate::bounds::FILES_MAX) {
        match store.linked_blob(group, &input.digest)? {
            Some(size) => sizes.push(size),
            None => {
                let problem = format!("{} was not uploaded by your group", input.digest);
                faults.push(FieldError::new(format!("inputs[{at}].digest"), problem, "upload the file first"));
            }
        }
    }
    Ok((spec, image, sizes, faults))
}

/// Hands a prepared job to the receiver; the answer comes after its commit.
pub(super) async fn submit(
    state: &ApiState,
    account: &Account,
    group: GroupId,
    prepared: Prepared,
    idempotency: Option<(String, swarm_protocol::Digest)>,
) -> Answer<Submitted> {
    let Prepared { spec, image, input_bytes } = prepared;
    let keyed = idempotency.is_some();
    let submitted_at = state.clock.now();
    let new = Box::new(NewJob {
        owner: account.id,
        group,
        spec,
        image,
        input_bytes,
        submitted_at,
        idempotency,
        launch: None,
    });
    match ask(&state.handles.receiver, |reply| ReceiverMsg::Submit { new, reply }).await? {
        Ok(Applied::Job { job, repeated }) => Ok(Submitted { job, repeated }),
        Ok(other) => Err(Refusal::Broken(format!("the receiver answered {other:?}")).into()),
        Err(Refusal::Conflict(_)) if keyed => {
            let detail = "this Idempotency-Key was used for another job";
            let problem = Problem::new(422, "idempotency-key-reused", "The key belongs to another request", detail);
            Err(Failure::from(problem.with_hint("use a new key for each job")))
        }
        Err(Refusal::Conflict(detail)) => Err(conflict(detail)),
        Err(refusal) => Err(refusal.into()),
    }
}
