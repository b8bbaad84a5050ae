//! Named volumes: made for one attempt, removed with it.

use std::collections::HashMap;

use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::{ListVolumesOptions, RemoveVolumeOptions};

use super::{DockerRuntime, label_filter};
use crate::runtime::spec::check_name;
use crate::runtime::{Labels, OurVolume, RuntimeError, check_filter};

impl DockerRuntime {
    pub(super) async fn make_volume(&self, name: &str, labels: &Labels) -> Result<(), RuntimeError> {
        check_name("volume", name)?;
        check_filter(labels)?;
        let wanted: HashMap<String, String> = labels.clone().into_iter().collect();
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            driver: Some("local".to_owned()),
            labels: Some(wanted.clone()),
            ..Default::default()
        };
        let made = self.call("create volume", self.docker.create_volume(request)).await?;
        // The engine hands out an existing volume of that name as if it were new.
        if made.labels != wanted {
            let message = format!("a volume {name} with other labels exists");
            return Err(RuntimeError::Conflict { call: "create volume", message });
        }
        Ok(())
    }

    pub(super) async fn drop_volume(&self, name: &str) -> Result<(), RuntimeError> {
        check_name("volume", name)?;
        let options = RemoveVolumeOptions { force: false };
        self.call("remove volume", self.docker.remove_volume(name, Some(options))).await
    }

    pub(super) async fn list_volumes(&self, labels: &Labels) -> Result<Vec<OurVolume>, RuntimeError> {
        let options = ListVolumesOptions { filters: Some(label_filter(labels)?) };
        let listed = self.call("list volumes", self.docker.list_volumes(Some(options))).await?;
        let volumes = listed.volumes.unwrap_or_default();
        Ok(volumes
            .into_iter()
            .map(|volume| OurVolume { name: volume.name, labels: volume.labels.into_iter().collect() })
            .collect())
    }
}
