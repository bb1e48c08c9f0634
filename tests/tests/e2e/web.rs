//! A web service as a rule's target, and the judge of what reached it: plain HTTP/1.1, nothing of ours in it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// One call, as it came.
#[derive(Debug, Clone)]
pub struct Call {
    /// Method and target, such as `POST /hello`.
    pub line: String,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Call {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What the service answers.
#[derive(Debug, Clone)]
pub struct Answer {
    /// After so long.
    pub after: Duration,
    /// Status and reason.
    pub status: &'static str,
    /// Its body, and a header `x-judge`.
    pub body: &'static str,
}

/// Fine, at once.
pub const FINE: Answer = Answer { after: Duration::ZERO, status: "200 OK", body: "fine" };

/// A running service; dropped, it ends.
pub struct Web {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    answer: Arc<Mutex<Answer>>,
    _tasks: JoinSet<()>,
}

impl Web {
    /// Serves on that socket, which may be of another network namespace.
    pub fn start(socket: std::net::TcpListener, answer: Answer) -> anyhow::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let listener = TcpListener::from_std(socket)?;
        let (calls, answer) = (Arc::<Mutex<Vec<Call>>>::default(), Arc::new(Mutex::new(answer)));
        let mut tasks = JoinSet::new();
        let (told, answers) = (calls.clone(), answer.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(talk(socket, told.clone(), answers.clone()));
            }
        });
        Ok(Self { address, calls, answer, _tasks: tasks })
    }

    /// A URL of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on it answers so.
    pub fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// Every call that came, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn talk(socket: TcpStream, calls: Arc<Mutex<Vec<Call>>>, answer: Arc<Mutex<Answer>>) {
    let mut socket = BufReader::new(socket);
    while let Ok(Some(call)) = read(&mut socket).await {
        calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        let Answer { after, status, body } = answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tokio::time::sleep(after).await;
        let text =
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nx-judge: e2e\r\n\r\n{body}", body.len());
        if socket.get_mut().write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(socket: &mut BufReader<TcpStream>) -> std::io::Result<Option<Call>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if socket.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let headers: Vec<(String, String)> = lines
        .iter()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, v)| v.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    socket.read_exact(&mut body).await?;
    let line = lines.first().map(|line| line.trim_end_matches(" HTTP/1.1").to_owned()).unwrap_or_default();
    Ok(Some(Call { line, headers, body }))
}
