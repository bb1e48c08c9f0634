//! Programs in running containers: `kubectl exec`. Standard streams go through FIFOs that containerd's shim opens.

use std::path::PathBuf;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetContainerRequest, KillRequest,
    ResizePtyRequest, StartRequest, WaitRequest,
};
use prost_types::Any;
use serde_json::{Value, json};
use tokio::net::unix::pipe;
use tonic::Code;

use super::{Runtime, RuntimeError, refused, tolerate};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const SIGKILL: u32 = 9;

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Unique on this node while it runs; letters, digits and `-`.
    pub id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// It gets standard input.
    pub stdin: bool,
    /// It gets a terminal (standard error then comes with standard output).
    pub tty: bool,
}

/// A program that was started. Dropping it leaves the program alone: end it with [`Runtime::exec_finish`].
pub struct Exec {
    /// The container.
    pub container_id: String,
    /// As asked for.
    pub id: String,
    /// Write standard input here; drop it and call [`Runtime::exec_close_stdin`] for its end.
    pub stdin: Option<pipe::Sender>,
    /// Standard output.
    pub stdout: pipe::Receiver,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<pipe::Receiver>,
    dir: Dir,
}

/// The directory of the FIFOs, removed with the program.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(%error, dir = %self.0.display(), "directory of an exec stays");
        }
    }
}

impl Runtime {
    /// Starts a program in a running container.
    pub async fn exec(&self, container_id: &str, request: &ExecRequest) -> Result<Exec, RuntimeError> {
        if request.command.is_empty() {
            return Err(RuntimeError::Config { message: "exec needs a command".into() });
        }
        let spec = self.process_spec(container_id, request).await?;
        let dir = self.config.data_dir.join("exec").join(&request.id);
        let failed = || RuntimeError::io(format!("make the FIFOs of an exec in {}", dir.display()));
        std::fs::create_dir_all(&dir).map_err(failed())?;
        let guard = Dir(dir.clone());
        let fifo = |name: &str| {
            let path = dir.join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))
                .map_err(|e| failed()(e.into()))?;
            Ok::<_, RuntimeError>(path)
        };
        // We hold both ends of each until the shim has opened its own: else an early reader sees an end that is none.
        let both = || {
            let mut options = pipe::OpenOptions::new();
            options.read_write(true);
            options
        };
        let text = |path: &Option<PathBuf>| path.as_ref().map_or(String::new(), |p| p.display().to_string());

        let stdin_path = request.stdin.then(|| fifo("stdin")).transpose()?;
        let stdout_path = Some(fifo("stdout")?);
        let stderr_path = (!request.tty).then(|| fifo("stderr")).transpose()?;
        let open = |path: &PathBuf| -> Result<(pipe::Receiver, pipe::Sender), RuntimeError> {
            let receiver = pipe::OpenOptions::new().open_receiver(path).map_err(failed())?;
            let keeper = pipe::OpenOptions::new().open_sender(path).map_err(failed())?;
            Ok((receiver, keeper))
        };
        let stdin = stdin_path.as_ref().map(|path| both().open_sender(path)).transpose().map_err(failed())?;
        let (stdout, stdout_keeper) = open(&dir.join("stdout"))?;
        let stderr = stderr_path.as_ref().map(open).transpose()?;

        let what = || format!("run {:?} in container {container_id}", request.command);
        let created = ExecProcessRequest {
            container_id: container_id.to_owned(),
            stdin: text(&stdin_path),
            stdout: text(&stdout_path),
            stderr: text(&stderr_path),
            terminal: request.tty,
            spec: Some(spec),
            exec_id: request.id.clone(),
        };
        self.client.tasks().exec(self.call(created)).await.map_err(refused(what()))?;
        let start = StartRequest { container_id: container_id.to_owned(), exec_id: request.id.clone() };
        if let Err(status) = self.client.tasks().start(self.call(start)).await {
            self.drop_exec(container_id, &request.id).await?;
            return Err(refused(what())(status));
        }
        drop(stdout_keeper);
        Ok(Exec {
            container_id: container_id.to_owned(),
            id: request.id.clone(),
            stdin,
            stdout,
            stderr: stderr.map(|(receiver, _keeper)| receiver),
            dir: guard,
        })
    }

    /// The container's own process, with another command.
    async fn process_spec(&self, container_id: &str, request: &ExecRequest) -> Result<Any, RuntimeError> {
        let get = GetContainerRequest { id: container_id.to_owned() };
        let reply = self.client.containers().get(self.call(get)).await;
        let container =
            reply.map_err(refused(format!("find container {container_id}")))?.into_inner().container;
        let spec = container.and_then(|c| c.spec).map(|any| any.value).unwrap_or_default();
        let mut process = serde_json::from_slice::<Value>(&spec)
            .ok()
            .and_then(|mut spec| spec.get_mut("process").map(Value::take))
            .unwrap_or_else(|| json!({"cwd": "/", "user": {"uid": 0, "gid": 0}}));
        if let Some(map) = process.as_object_mut() {
            map.insert("args".into(), json!(request.command));
            map.insert("terminal".into(), json!(request.tty));
            if request.tty {
                let env = map.entry("env").or_insert_with(|| json!([]));
                let has_term = |v: &Value| v.as_str().is_some_and(|v| v.starts_with("TERM="));
                if let Some(list) = env.as_array_mut().filter(|list| !list.iter().any(has_term)) {
                    list.push(json!("TERM=xterm"));
                }
            }
        }
        Ok(Any { type_url: PROCESS_TYPE.to_owned(), value: process.to_string().into_bytes() })
    }

    /// Tells the program that its standard input has ended (after the sender was dropped).
    pub async fn exec_close_stdin(&self, container_id: &str, exec_id: &str) -> Result<(), RuntimeError> {
        let request = CloseIoRequest {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin: true,
        };
        let closed = self.client.tasks().close_io(self.call(request)).await;
        tolerate(closed, Code::NotFound, "close standard input").map(drop)
    }

    /// The terminal of whoever asked has another size.
    pub async fn exec_resize(
        &self,
        container_id: &str,
        exec_id: &str,
        width: u32,
        height: u32,
    ) -> Result<(), RuntimeError> {
        let request = ResizePtyRequest {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            width,
            height,
        };
        let resized = self.client.tasks().resize_pty(self.call(request)).await;
        tolerate(resized, Code::NotFound, "resize the terminal").map(drop)
    }

    /// Waits for the program's end; gives its exit code. What it wrote last may still be in its pipes.
    pub async fn exec_wait(&self, container_id: &str, exec_id: &str) -> Result<i32, RuntimeError> {
        let request = WaitRequest { container_id: container_id.to_owned(), exec_id: exec_id.to_owned() };
        let reply = self.client.tasks().wait(self.endless_call(request)).await;
        let status = reply.map_err(refused(format!("wait for exec {exec_id}")))?.into_inner().exit_status;
        Ok(i32::try_from(status).unwrap_or(255))
    }

    /// Ends the program if it still runs and removes what it needed.
    pub async fn exec_finish(&self, exec: Exec) -> Result<(), RuntimeError> {
        self.drop_exec(&exec.container_id, &exec.id).await?;
        drop(exec.dir);
        Ok(())
    }

    async fn drop_exec(&self, container_id: &str, exec_id: &str) -> Result<(), RuntimeError> {
        let kill = KillRequest {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal: SIGKILL,
            all: false,
        };
        // Already ended or never started: then there is nothing to end.
        if self.client.tasks().kill(self.call(kill)).await.is_ok() {
            let _ = tokio::time::timeout(super::CALL_TIMEOUT, self.exec_wait(container_id, exec_id)).await;
        }
        let request =
            DeleteProcessRequest { container_id: container_id.to_owned(), exec_id: exec_id.to_owned() };
        let gone = self.client.tasks().delete_process(self.call(request)).await;
        tolerate(gone, Code::NotFound, format!("drop exec {exec_id}")).map(drop)
    }
}
