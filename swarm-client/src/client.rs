//! The client: one session with one core, and the machinery every route goes through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder, Response};
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use swarm_protocol::api::{LoginRequest, RefreshRequest, Tokens};
use tokio::sync::Mutex;
use url::Url;

use crate::call::{ANSWER_BYTES_MAX, Call, PROBLEM_BYTES_MAX, problem, retry_after};
use crate::http::Http;
use crate::retry::{self, Patience};
use crate::tokens::{SavedTokens, TokenStore};
use crate::{ClientError, address};

/// How long a client waits. There is no bound on a whole transfer, only on its silences.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a connection to stand.
    pub connect: Duration,
    /// Between two pieces of an answer. Also ends a quiet log, which is then taken up again where it was.
    pub idle: Duration,
    /// Between two pieces that the core takes of an upload.
    pub upload_idle: Duration,
    /// For the core's verdict after the last byte of an upload: it syncs and unpacks first.
    pub upload_verdict: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { connect: s(5), idle: s(60), upload_idle: s(60), upload_verdict: s(900) }
    }
}

/// A session with one core. Cheap to clone; clones share the tokens.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    patience: Option<Arc<Patience>>,
}

struct Inner {
    base: Url,
    http: Http,
    store: Arc<dyn TokenStore>,
    /// `None` until first asked for; held during a refresh, so that a burst of expired calls makes one.
    session: Mutex<Option<SavedTokens>>,
    /// A core has answered: the address is right.
    heard: AtomicBool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.inner.base.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the core at `url`, with the tokens in `store`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Address`] when the address is none or may not be used.
    pub fn new(url: &str, store: Arc<dyn TokenStore>) -> Result<Self, ClientError> {
        Self::with_timeouts(url, store, Timeouts::default())
    }

    /// As [`new`](Self::new), with other waits.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_timeouts(url: &str, store: Arc<dyn TokenStore>, timeouts: Timeouts) -> Result<Self, ClientError> {
        let base = address::parse(url)?;
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Lost only to another thread that installs the same one.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let unusable = |error: reqwest::Error| ClientError::Address { url: url.to_owned(), reason: error.to_string() };
        let http = Http::new(timeouts, base.scheme() == "http").map_err(unusable)?;
        let inner = Inner { base, http, store, session: Mutex::new(None), heard: AtomicBool::new(false) };
        Ok(Self { inner: Arc::new(inner), patience: None })
    }

    /// As this one, but calls that may be repeated wait up to `span` for a core that has answered before and has gone,
    /// as it does when it is upgraded. `tell` is called once in each absence that is more than a moment.
    #[must_use]
    pub fn patient(&self, span: Duration, tell: impl Fn(&ClientError) + Send + Sync + 'static) -> Self {
        Self { inner: Arc::clone(&self.inner), patience: Some(Arc::new(Patience::new(span, tell))) }
    }

    /// The core's address, with a final `/`.
    #[must_use]
    pub fn url(&self) -> &str {
        self.inner.base.as_str()
    }

    pub(crate) fn http(&self) -> &Http {
        &self.inner.http
    }

    /// Logs in and keeps the tokens in the store.
    ///
    /// # Errors
    /// A [`ClientError::Problem`] with status 401 when name or password are wrong.
    pub async fn login(&self, user: &str, password: &str) -> Result<(), ClientError> {
        let body = LoginRequest { user: user.to_owned(), password: password.to_owned() };
        let tokens: Tokens = self.json(Call::post("login").json(&body).anonymous()).await?;
        let mut session = self.inner.session.lock().await;
        self.keep(&mut session, Some(tokens.into())).await
    }

    /// Ends the session on the core and forgets the tokens here, also when the core cannot be told.
    ///
    /// # Errors
    /// When the core could not be told, or the store could not forget.
    pub async fn logout(&self) -> Result<(), ClientError> {
        let told = self.nothing(Call::post("logout").repeatable()).await;
        let mut session = self.inner.session.lock().await;
        self.keep(&mut session, None).await?;
        match told {
            // The core no longer knows the session, which is what was asked for.
            Err(error) if error.is_status(401) => Ok(()),
            Err(ClientError::NotLoggedIn) => Ok(()),
            other => other,
        }
    }

    /// Sends and reads a JSON answer, with retries where they do no harm.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let bytes = self.bytes(&call).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.protocol(error.to_string()))
    }

    /// Sends and expects no body.
    pub(crate) async fn nothing(&self, call: Call) -> Result<(), ClientError> {
        self.bytes(&call).await.map(drop)
    }

    async fn bytes(&self, call: &Call) -> Result<Vec<u8>, ClientError> {
        let mut failures = 0;
        loop {
            let response = self.open(call).await?;
            match self.read(response, ANSWER_BYTES_MAX).await {
                Err(error) if error.is_retryable() && call.repeatable && failures + 1 < retry::TRIES_MAX => {
                    failures += 1;
                    retry::wait(failures, None).await;
                }
                other => return other,
            }
        }
    }

    /// Sends until there is a good answer, whose body is left to the caller.
    pub(crate) async fn open(&self, call: &Call) -> Result<Response, ClientError> {
        let (mut failures, mut refreshed) = (0, false);
        loop {
            let tokens = if call.authorised { Some(self.tokens().await?) } else { None };
            let (error, wish) = match self.request(Http::call, call, tokens.as_ref()).send().await {
                Ok(response) if response.status().is_success() => {
                    self.heard();
                    return Ok(response);
                }
                Ok(response) => {
                    let wish = retry_after(response.headers());
                    (self.refusal(response).await, wish)
                }
                Err(source) => (self.unreachable(source), None),
            };
            let error = match tokens.filter(|_| is_expired(&error) && !refreshed) {
                Some(tokens) => match self.refresh(&tokens).await {
                    Ok(()) => {
                        refreshed = true;
                        continue;
                    }
                    Err(error) => {
                        // It had all the tries of a call.
                        failures = retry::TRIES_MAX - 1;
                        error
                    }
                },
                None => error,
            };
            failures += 1;
            // A connection that never stood carried nothing, so trying it again repeats nothing.
            let unsent = matches!(&error, ClientError::Unreachable { source, .. } if source.is_connect());
            let again = error.is_retryable() && (call.repeatable || unsent) && failures < retry::TRIES_MAX;
            let awaited = call.repeatable && self.awaits(failures, &error);
            if !again && !awaited {
                return Err(error);
            }
            tracing::debug!(error = %error, failures, "sending again");
            retry::wait(failures, wish).await;
        }
    }

    /// A core answers.
    fn heard(&self) {
        self.inner.heard.store(true, Ordering::Relaxed);
        if let Some(patience) = &self.patience {
            patience.end();
        }
    }

    /// Whether the core has gone and is waited for.
    fn awaits(&self, failures: u32, error: &ClientError) -> bool {
        let Some(patience) = &self.patience else { return false };
        if !error.is_absence() {
            patience.end();
            return false;
        }
        self.inner.heard.load(Ordering::Relaxed) && patience.lasts(failures, error)
    }

    fn request(
        &self,
        open: fn(&Http, Method, Url) -> RequestBuilder,
        call: &Call,
        tokens: Option<&SavedTokens>,
    ) -> RequestBuilder {
        // Paths are made here of numbers, digests and fixed words, so they always join.
        let url = self.inner.base.join(&call.path).expect("paths are well-formed");
        let mut request = open(&self.inner.http, call.method.clone(), url).headers(call.headers.clone());
        if !call.query.is_empty() {
            request = request.query(&call.query);
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        match tokens {
            Some(tokens) => request.bearer_auth(tokens.access.expose_secret()),
            None => request,
        }
    }

    /// A request for the body of which the caller cares, with a token that is good for a while.
    ///
    /// An upload cannot be rewound when its token turns out to be stale, so the token is tried before.
    pub(crate) async fn upload_request(&self, call: &Call) -> Result<RequestBuilder, ClientError> {
        self.whoami().await?;
        let tokens = self.tokens().await?;
        Ok(self.request(Http::upload_call, call, Some(&tokens)))
    }

    /// Turns an answer with an error status into the problem it states.
    pub(crate) async fn refusal(&self, response: Response) -> ClientError {
        let status = response.status().as_u16();
        match self.read(response, PROBLEM_BYTES_MAX).await {
            Ok(body) => ClientError::Problem(Box::new(problem(status, &body))),
            Err(_) => ClientError::Problem(Box::new(problem(status, &[]))),
        }
    }

    pub(crate) async fn read(&self, response: Response, bytes_max: usize) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|source| self.unreachable(source))?;
            if body.len() + piece.len() > bytes_max {
                return Err(self.protocol(format!("more than {bytes_max} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    pub(crate) fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable { url: self.url().to_owned(), source: source.without_url() }
    }

    pub(crate) fn protocol(&self, what: impl Into<String>) -> ClientError {
        ClientError::Protocol { url: self.url().to_owned(), what: what.into() }
    }

    async fn tokens(&self) -> Result<SavedTokens, ClientError> {
        let mut session = self.inner.session.lock().await;
        if session.is_none() {
            *session = self.blocking(|store| store.load()).await?;
        }
        session.clone().ok_or(ClientError::NotLoggedIn)
    }

    /// Renews the session unless somebody, here or in another process, has done so since `stale` was read.
    async fn refresh(&self, stale: &SavedTokens) -> Result<(), ClientError> {
        let mut session = self.inner.session.lock().await;
        if session.as_ref().is_some_and(|now| !now.same_access(stale)) {
            return Ok(());
        }
        let _other_processes = self.blocking(|store| store.lock()).await?;
        let saved = self.blocking(|store| store.load()).await?.ok_or(ClientError::NotLoggedIn)?;
        if !saved.same_access(stale) {
            *session = Some(saved);
            return Ok(());
        }
        let body = RefreshRequest { refresh_token: saved.refresh.expose_secret().to_owned() };
        // A token whose answer came too late is good once more, for a while: the sooner it is tried again, the better.
        let call = Call::post("refresh").json(&body).anonymous().repeatable();
        // Others wait for this one, so it is not patient.
        let hasty = Self { inner: Arc::clone(&self.inner), patience: None };
        // Boxed because `open` refreshes and a refresh opens; an anonymous call refreshes nothing.
        let response = Box::pin(hasty.open(&call)).await?;
        let answer = self.read(response, PROBLEM_BYTES_MAX).await?;
        let tokens: Tokens = serde_json::from_slice(&answer).map_err(|error| self.protocol(error.to_string()))?;
        self.keep(&mut session, Some(tokens.into())).await
    }

    async fn keep(&self, session: &mut Option<SavedTokens>, tokens: Option<SavedTokens>) -> Result<(), ClientError> {
        session.clone_from(&tokens);
        self.blocking(move |store| store.save(tokens.as_ref())).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn TokenStore) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, ClientError> {
        let store = Arc::clone(&self.inner.store);
        let done = tokio::task::spawn_blocking(move || work(store.as_ref())).await;
        done.unwrap_or_else(|panic| Err(std::io::Error::other(panic))).map_err(ClientError::Tokens)
    }
}

fn is_expired(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.status == 401 && problem.code == "token-expired")
}
