//! From a spec as it came to a job that can be committed: every field checked, the image pinned, the inputs found.

use swarm_protocol::GroupId;
use swarm_protocol::api::{Plan, Submitted, Warning};
use swarm_protocol::link::ImageOrder;
use swarm_protocol::problem::{FieldError, Problem};
use swarm_protocol::spec::JobSpec;
use swarm_protocol::validate::{start_fault, validate};

use super::problem::{Answer, Failure};
use super::{ApiState, ask};
use crate::clock::truncate;
use crate::identity::Account;
use crate::images::ImageRef;
use crate::messages::{DispatcherMsg, ReceiverMsg, Shape};
use crate::store::{Applied, NewJob, Prepared, Refusal, Store, StoreError};
use swarm_host::blocking;

/// As [`prepare`] for a job that is submitted now: its start must lie ahead and, if it `must_fit`, some worker must be
/// large enough, unless `key` made this job before.
pub(super) async fn prepare_job(
    state: &ApiState,
    group: GroupId,
    spec: JobSpec,
    key: Option<&str>,
    must_fit: bool,
) -> Answer<Prepared> {
    let late = spec.start_at.and_then(|start_at| start_fault(start_at, state.clock.now()));
    let misfit = if must_fit { misfit(state, Shape::of(&spec)).await? } else { None };
    let known = match key.map(str::to_owned).filter(|_| late.is_some() || misfit.is_some()) {
        Some(key) => state.read(move |store| store.job_of_key(group, &key)).await?,
        None => None,
    };
    let (late, misfit) = if known.is_some() { (None, None) } else { (late, misfit) };
    let prepared = prepare_with(state, group, spec, "", late).await?;
    match misfit {
        None => Ok(prepared),
        Some(Warning { field, problem, hint, .. }) => {
            let detail = format!("{field}: {problem}");
            let mut refusal =
                Problem::new(422, "no-worker-fits", "No worker could ever run it", detail).with_hint(&hint);
            refusal.errors.push(FieldError::new(field, problem, hint));
            Err(refusal.into())
        }
    }
}

/// Why no worker known could ever run a task of this shape.
async fn misfit(state: &ApiState, shape: Shape) -> Answer<Option<Warning>> {
    state.ask(&state.handles.dispatcher, |reply| DispatcherMsg::Misfit { shape, reply }).await
}

/// Checks a spec and looks up what it refers to, which must be its group's. Errors name every wrong field; `prefix` goes
/// before their paths.
pub(super) async fn prepare(state: &ApiState, group: GroupId, spec: JobSpec, prefix: &str) -> Answer<Prepared> {
    prepare_with(state, group, spec, prefix, None).await
}

async fn prepare_with(
    state: &ApiState,
    group: GroupId,
    mut spec: JobSpec,
    prefix: &str,
    fault: Option<FieldError>,
) -> Answer<Prepared> {
    spec.start_at = spec.start_at.map(truncate);
    // Globs take a while to compile.
    let (spec, mut faults) = blocking::run(move || {
        let faults = validate(&spec).err().unwrap_or_default();
        (spec, faults)
    })
    .await;
    faults.extend(fault);
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

/// What would become of a job at this moment. It is checked as one that is submitted.
pub(super) async fn plan(state: &ApiState, group: GroupId, spec: JobSpec) -> Answer<Plan> {
    let Prepared { spec, image, .. } = prepare_job(state, group, spec, None, false).await?;
    let (shape, same) = (Shape::of(&spec), Shape::of(&spec));
    let reasons = state.ask(&state.handles.dispatcher, |reply| DispatcherMsg::Why { shape, reply }).await?;
    let warnings = misfit(state, same).await?.into_iter().collect();
    let hint = crate::plan::why::hint(&reasons);
    Ok(Plan { image: image.config, tasks: spec.tasks().count(), reasons, hint, warnings })
}

/// Hands a prepared job to the receiver; the answer comes after its commit, however long that takes.
pub(super) async fn submit(
    state: &ApiState,
    account: &Account,
    group: GroupId,
    job: Prepared,
    idempotency: Option<(String, swarm_protocol::Digest)>,
) -> Answer<Submitted> {
    let (keyed, shape) = (idempotency.is_some(), Shape::of(&job.spec));
    let submitted_at = state.clock.now();
    let new = Box::new(NewJob { owner: account.id, group, job, submitted_at, idempotency, launch: None });
    match ask(&state.handles.receiver, |reply| ReceiverMsg::Submit { new, reply }).await? {
        Ok(Applied::Job { job, repeated }) => {
            // The job is accepted, whatever becomes of its warnings.
            let warnings = misfit(state, shape).await.unwrap_or_default().into_iter().collect();
            Ok(Submitted { job, repeated, warnings })
        }
        Ok(other) => Err(Refusal::Broken(format!("the receiver answered {other:?}")).into()),
        Err(Refusal::Conflict(_)) if keyed => {
            let detail = "this Idempotency-Key was used for another job";
            let problem = Problem::new(422, "idempotency-key-reused", "The key belongs to another request", detail);
            Err(Failure::from(problem.with_hint("use a new key for each job")))
        }
        Err(refusal) => Err(refusal.into()),
    }
}
