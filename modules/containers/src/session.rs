//! Logs and exec through a credit-bounded byte stream: bytes flow in an owned task, nothing is buffered beyond a chunk.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use bus::connection::Handles;
use bus::stream::ByteStream;
use bytes::{Buf, Bytes};
use schemas::Timestamp;
use schemas::command::{FRAME_MAX_BYTES, Frame, Refusal, channel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::effects::{ContainersRim, ExecSession, LogsSession};
use crate::runtime::exec::{Exec, ExecRequest};
use crate::runtime::log_reader::{LogOptions, LogReader};
use crate::runtime::{Runtime, RuntimeError};

/// Input that a program has not read yet; the asker waits beyond it.
const STDIN_QUEUE_BYTES: usize = 1024 * 1024;
/// What a program wrote last is waited for so long after its end (a child of it may hold its pipes for ever).
const LAST_WORDS: Duration = Duration::from_secs(2);

fn refusal(status: u16, code: &str, error: &RuntimeError) -> Refusal {
    Refusal::new(status, code, error.to_string())
}

/// Opens a stream, or says why not. `None`: there is nobody left to say it to.
async fn accept(rim: &ContainersRim, bus: &Handles, session: &str) -> Option<ByteStream> {
    match ByteStream::accept(&bus.control, rim.node(), session).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::debug!(%error, "a byte stream could not be opened");
            None
        }
    }
}

/// Sends a log.
pub(crate) async fn logs(rim: &ContainersRim, bus: &Handles, logs: LogsSession) {
    let Some(mut stream) = accept(rim, bus, &logs.open.session).await else { return };
    let result = match rim.runtime().await {
        Err(error) => {
            let _ = stream.answer(&Err(refusal(503, "EW-CONTAINERD-AWAY", &error))).await;
            return;
        }
        Ok(runtime) => send_log(runtime, &mut stream, &logs).await,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a log stream ended early");
    }
}

async fn send_log(runtime: &Runtime, stream: &mut ByteStream, logs: &LogsSession) -> Result<(), Refusal> {
    let open = &logs.open;
    let path: PathBuf = runtime
        .logs_dir(&open.namespace, &open.pod, &logs.uid)
        .join(&logs.container)
        .join(format!("{}.log", logs.attempt));
    let options = LogOptions {
        follow: open.follow,
        tail_lines: open.tail_lines,
        since: open.since_seconds.map(|s| {
            let ago = i64::try_from(s.saturating_mul(1000)).unwrap_or(i64::MAX);
            Timestamp(Timestamp::now().0.saturating_sub(ago))
        }),
        timestamps: open.timestamps,
        limit_bytes: open.limit_bytes,
    };
    let (ended, running) = watch::channel(logs.running);
    let mut reader = match LogReader::open(&path, options, running) {
        Ok(reader) => reader,
        Err(error) => return stream.answer(&Err(refusal(500, "EW-LOG-UNREADABLE", &error))).await,
    };
    stream.answer(&Ok(())).await?;
    let id = crate::runtime::container::container_id(&logs.uid, &logs.container, logs.attempt);
    let watching = async {
        if logs.running {
            // While containerd is away nothing is known: the container still runs.
            while runtime.wait(&id).await.is_err_and(|error| !error.is_not_found()) {
                tokio::time::sleep(LAST_WORDS).await;
            }
            ended.send_replace(false);
        }
        std::future::pending::<()>().await;
    };
    tokio::pin!(watching);
    loop {
        let chunk = tokio::select! {
            chunk = reader.next() => chunk,
            frame = stream.next() => match frame? {
                Some(Frame::End { .. }) => return Ok(()),
                _ => continue,
            },
            () = &mut watching => continue,
        };
        match chunk {
            Ok(Some(bytes)) => {
                if !send_all(stream, channel::STDOUT, bytes).await? {
                    return Ok(());
                }
            }
            Ok(None) => return stream.end(None, None).await,
            Err(error) => return stream.end(None, Some(refusal(500, "EW-LOG-UNREADABLE", &error))).await,
        }
    }
}

/// Sends all of it as credit comes; false when the other side has ended the stream.
async fn send_all(stream: &mut ByteStream, channel: u8, mut bytes: Bytes) -> Result<bool, Refusal> {
    while !bytes.is_empty() {
        if stream.can_send() {
            let sent = stream.send(channel, &bytes).await?;
            bytes.advance(sent);
        } else if let Some(Frame::End { .. }) = stream.next().await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Runs a program.
pub(crate) async fn exec(rim: &ContainersRim, bus: &Handles, session: ExecSession) {
    let Some(mut stream) = accept(rim, bus, &session.open.session).await else { return };
    let started = async {
        let runtime = rim.runtime().await?;
        let open = &session.open;
        let request = ExecRequest {
            id: open.session.clone(),
            command: open.command.clone(),
            stdin: open.stdin,
            tty: open.tty,
        };
        Ok::<_, RuntimeError>((runtime, runtime.exec(&session.id, &request).await?))
    }
    .await;
    let (runtime, mut exec) = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = stream.answer(&Err(refusal(500, "EW-EXEC-FAILED", &error))).await;
            return;
        }
    };
    let result = match stream.answer(&Ok(())).await {
        Ok(()) => Pump::new(runtime, &mut stream, &mut exec).run().await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an exec's stream ended early");
    }
    if let Err(error) = runtime.exec_finish(exec).await {
        tracing::debug!(%error, "an exec was not cleaned up");
    }
}

/// Moves bytes between a program and a stream until the program has ended or the asker has gone.
struct Pump<'a> {
    runtime: &'a Runtime,
    stream: &'a mut ByteStream,
    exec: &'a mut Exec,
    stdin: VecDeque<Bytes>,
    stdin_ended: bool,
    out: Option<(u8, Bytes)>,
    stdout_open: bool,
}

impl<'a> Pump<'a> {
    fn new(runtime: &'a Runtime, stream: &'a mut ByteStream, exec: &'a mut Exec) -> Self {
        Self {
            runtime,
            stream,
            exec,
            stdin: VecDeque::new(),
            stdin_ended: false,
            out: None,
            stdout_open: true,
        }
    }

    async fn run(mut self) -> Result<(), Refusal> {
        let (container, id) = (self.exec.container_id.clone(), self.exec.id.clone());
        let runtime = self.runtime;
        let waiting = runtime.exec_wait(&container, &id);
        tokio::pin!(waiting);
        let mut exit: Option<i32> = None;
        let mut deadline = tokio::time::Instant::now();
        let (mut from_out, mut from_err) = (vec![0; FRAME_MAX_BYTES], vec![0; FRAME_MAX_BYTES]);
        loop {
            if self.out.is_some() && self.stream.can_send() {
                self.send_some().await?;
                continue;
            }
            let silent = !self.stdout_open && self.exec.stderr.is_none() && self.out.is_none();
            if let (Some(code), true) = (exit, silent) {
                return self.stream.end(Some(code), None).await;
            }
            let idle = self.out.is_none();
            let waiting_bytes: usize = self.stdin.iter().map(Bytes::len).sum();
            tokio::select! {
                code = &mut waiting, if exit.is_none() => match code {
                    Ok(code) => {
                        exit = Some(code);
                        deadline = tokio::time::Instant::now() + LAST_WORDS;
                    }
                    Err(error) => {
                        return self.stream.end(None, Some(refusal(500, "EW-EXEC-LOST", &error))).await;
                    }
                },
                () = tokio::time::sleep_until(deadline), if exit.is_some() && idle => {
                    return self.stream.end(exit, None).await;
                }
                n = self.exec.stdout.read(&mut from_out), if self.stdout_open && idle => {
                    let n = n.unwrap_or(0);
                    self.stdout_open = n > 0;
                    self.take(channel::STDOUT, from_out.get(..n));
                }
                n = read_some(&mut self.exec.stderr, &mut from_err), if self.exec.stderr.is_some() && idle => {
                    if n == 0 {
                        self.exec.stderr = None;
                    }
                    self.take(channel::STDERR, from_err.get(..n));
                }
                written = write_some(&mut self.exec.stdin, self.stdin.front()), if !self.stdin.is_empty() => {
                    self.wrote(written);
                }
                frame = self.stream.next(), if waiting_bytes < STDIN_QUEUE_BYTES => match frame? {
                    // The asker has gone: `exec_finish` ends the program.
                    Some(Frame::End { .. }) => return Ok(()),
                    Some(Frame::Data { channel, bytes, .. }) => self.received(channel, bytes).await,
                    _ => {}
                },
            }
            if self.stdin_ended && self.stdin.is_empty() && self.exec.stdin.take().is_some() {
                // The program may have ended meanwhile: then there is nobody to tell.
                let _ = runtime.exec_close_stdin(&container, &id).await;
            }
        }
    }

    fn take(&mut self, channel: u8, bytes: Option<&[u8]>) {
        if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
            self.out = Some((channel, Bytes::copy_from_slice(bytes)));
        }
    }

    async fn send_some(&mut self) -> Result<(), Refusal> {
        if let Some((channel, mut bytes)) = self.out.take() {
            let sent = self.stream.send(channel, &bytes).await?;
            bytes.advance(sent);
            self.out = (!bytes.is_empty()).then_some((channel, bytes));
        }
        Ok(())
    }

    fn wrote(&mut self, written: std::io::Result<usize>) {
        match (written, self.stdin.front_mut()) {
            (Ok(n), Some(front)) => {
                front.advance(n.min(front.len()));
                if front.is_empty() {
                    self.stdin.pop_front();
                }
            }
            // The program reads no more.
            _ => self.stdin.clear(),
        }
    }

    async fn received(&mut self, channel: u8, bytes: Bytes) {
        match channel {
            channel::STDIN if bytes.is_empty() => self.stdin_ended = true,
            channel::STDIN if self.exec.stdin.is_some() => self.stdin.push_back(bytes),
            channel::RESIZE => {
                let size = serde_json::from_slice::<serde_json::Value>(&bytes).unwrap_or_default();
                let side = |name: &str| {
                    size.get(name).and_then(serde_json::Value::as_u64).and_then(|n| u32::try_from(n).ok())
                };
                if let (Some(width), Some(height)) = (side("Width"), side("Height")) {
                    let (container, id) = (&self.exec.container_id, &self.exec.id);
                    let _ = self.runtime.exec_resize(container, id, width, height).await;
                }
            }
            _ => {}
        }
    }
}

async fn read_some(from: &mut Option<pipe::Receiver>, into: &mut [u8]) -> usize {
    match from {
        Some(from) => from.read(into).await.unwrap_or(0),
        None => 0,
    }
}

async fn write_some(to: &mut Option<pipe::Sender>, bytes: Option<&Bytes>) -> std::io::Result<usize> {
    match (to, bytes) {
        (Some(to), Some(bytes)) => to.write(bytes).await,
        _ => Err(std::io::ErrorKind::BrokenPipe.into()),
    }
}
