//! Tokens that have expired do not stay in the store.

use chrono::TimeDelta;
use swarm_protocol::{Digest, Timestamp};

use super::*;

impl Core<'_> {
    /// A refresh token that expires then.
    async fn issue(&self, name: &str, expires_at: Timestamp) {
        let (hash, family) = (Digest::of(name.as_bytes()), uuid::Uuid::new_v4());
        let user = self.store.users().unwrap().remove(0);
        let (user, token_version, replaces) = (user.id, user.token_version, None);
        let issue = Transition::IssueRefresh { hash, family, user, token_version, expires_at, replaces };
        self.handles.ledger.commit(issue).await.unwrap().unwrap();
    }

    fn knows(&self, name: &str) -> bool {
        self.store.refresh_token(&Digest::of(name.as_bytes())).unwrap().is_some()
    }
}

#[tokio::test]
async fn expired_tokens_are_removed_a_day_later() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    let now = disk.clock.now();
    core.issue("old", now - TimeDelta::hours(25)).await;
    core.issue("recent", now - TimeDelta::hours(20)).await;
    // Whatever the first look found, there is another one an hour later.
    disk.clock.advance_ms(2 * 3_600_000);
    core.until(|| !core.knows("old")).await;
    assert!(core.knows("recent"));
}

#[tokio::test]
async fn a_removal_that_the_database_refused_is_made_up_for_an_hour_later() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    core.troubled.refuse(|transition| matches!(transition, Transition::PurgeExpired { .. }));
    core.issue("old", disk.clock.now() - TimeDelta::hours(25)).await;
    let a_while_later = || disk.clock.advance_ms(600_000);
    core.until(|| {
        a_while_later();
        core.troubled.has_refused_all()
    })
    .await;
    assert!(core.knows("old"));
    core.until(|| {
        a_while_later();
        !core.knows("old")
    })
    .await;
}
