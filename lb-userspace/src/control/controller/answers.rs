//! Answers to what the API asks.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tracing::info;

use super::Controller;
use super::reload::Refusal;
use crate::api::{Answer, Call, Question};
use crate::config;
use crate::control::findings;
use crate::control::report::{self, Sources};
use crate::metrics;

/// How long a status waits for a fresh count of flows.
const FRESH_CENSUS: Duration = Duration::from_millis(200);

impl Controller {
    /// Has the flows counted before a question is answered. The loop goes on meanwhile.
    pub(super) fn count_first(&self, call: Call) {
        let counted = self.flows.walk_now(FRESH_CENSUS);
        let back = self.recount.clone();
        tokio::spawn(async move {
            counted.await;
            // The loop has ended: whoever asked is told by the end of the call.
            let _ = back.send(call);
        });
    }

    /// Answers; whether the data plane is gone afterwards.
    pub(super) async fn reply(&mut self, (question, reply): Call) -> bool {
        let answer = self.answer(question).await;
        let is_detached = matches!(answer, Answer::Detached);
        // Nobody waits for it any more.
        let _ = reply.send(answer);
        is_detached
    }

    async fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Status => self.status().map_or_else(failed, Answer::Document),
            Question::Diagnose { set } => self.diagnose(set.as_deref()).unwrap_or_else(failed),
            Question::Names => Answer::Document(json!(report::names(&self.desired.names))),
            Question::Metrics => self.metrics().unwrap_or_else(failed),
            Question::Config => {
                Answer::Document(json!({ "toml": config::show(&self.overrides.applied_to(&self.config)) }))
            }
            Question::History { set, backend } => self.book.history(set.as_deref(), backend.as_deref()),
            Question::Events => Answer::Document(self.events.document()),
            Question::Reload => match self.reload().await {
                Ok(warnings) => Answer::Document(json!({ "reloaded": true, "warnings": warnings })),
                Err(Refusal::Config(report)) => {
                    Answer::Refused(json!({ "error": "the file was refused", "report": report }))
                }
                Err(Refusal::Host(error)) => failed(error),
            },
            Question::Backend { set, backend, action } => {
                if let Err(message) = self.overrides.set(&self.config, &set, &backend, action) {
                    return Answer::NotFound(message);
                }
                info!(set, backend, action = action.word(), "life-cycle changed by request");
                self.note_overrides();
                self.watch_backends();
                self.apply().map_or_else(failed, |()| Answer::Document(json!({ "done": true })))
            }
            Question::Detach => self.detach().map_or_else(failed, |()| Answer::Detached),
        }
    }

    /// Everything a report may look at.
    fn with_sources<R>(&mut self, make: impl FnOnce(&Sources<'_>) -> Result<R>) -> Result<R> {
        let program_id = self.dataplane.program()?.info().context("cannot look at the program")?.id();
        let config = self.overrides.applied_to(&self.config);
        make(&Sources {
            instance: self.instance.name(),
            file: &self.file,
            loaded_at: self.loaded_at,
            last_reload_error: self.last_reload_error.as_deref(),
            reload_failures: self.reload_failures,
            config: &config,
            attached: &self.attached,
            lost: &self.lost,
            program_id,
            desired: &self.desired,
            book: &self.book,
            ways: &self.ways.borrow(),
            census: &self.flows.census(),
            host_ports: &self.host_ports,
            maps: &self.dataplane.maps,
            tally: &self.dataplane.maps.tally(),
        })
    }

    fn status(&mut self) -> Result<Value> {
        let status = self.with_sources(report::status)?;
        serde_json::to_value(status).context("cannot write the status")
    }

    fn diagnose(&mut self, set: Option<&str>) -> Result<Answer> {
        let diagnosis = self.with_sources(|sources| findings::diagnosis(sources, set))?;
        let Some(diagnosis) = diagnosis else {
            let names: Vec<&str> = self.config.backend_sets.keys().map(String::as_str).collect();
            return Ok(Answer::NotFound(format!("no such backend set; there are: {}", names.join(", "))));
        };
        Ok(Answer::Document(serde_json::to_value(diagnosis).context("cannot write the diagnosis")?))
    }

    fn metrics(&mut self) -> Result<Answer> {
        let status = self.with_sources(report::status)?;
        let text = metrics::render(&status, self.book.checks_made()).context("cannot write the metrics")?;
        Ok(Answer::Metrics(text))
    }
}

fn failed(error: anyhow::Error) -> Answer {
    Answer::Failed(format!("{error:#}"))
}
