#!/usr/bin/env bash
# A Ray cluster and an MLflow server on this machine, to try jobs the way a cluster runs them. Dashboard and MLflow bind to
# the loopback; Ray binds its own ports to every address and answers only who has the token of ~/.ray/auth_token.
#
#   cluster/local.sh start | stop | status
#
# Its one node has resources of every group of the real clusters, so that their recipes' demands fit on it. What may be
# set: RAY_PORT, DASHBOARD_PORT, MLFLOW_PORT, CPUS (logical ones), RAY_FOLDER (a short path: sockets lie in it), STATE (session
# numbers and logs), STORAGE (MLflow's), BIN (of the Python environment).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RAY_PORT=${RAY_PORT:-6379}
DASHBOARD_PORT=${DASHBOARD_PORT:-8265}
MLFLOW_PORT=${MLFLOW_PORT:-5000}
CPUS=${CPUS:-$(($(nproc) > 8 ? $(nproc) : 8))}
RAY_FOLDER=${RAY_FOLDER:-/tmp/rayvideo-$(id -u)}
STATE=${STATE:-$PWD/.cluster}
STORAGE=$(realpath --canonicalize-missing --no-symlinks "${STORAGE:-runs}")
BIN=${BIN:-$PWD/.venv/bin}
PATIENCE_S=120

# Whether a process is left of the session that `launch` made; its mark in the environment tells it from a later session
# that was given the same number.
alive() {
    local pid
    [ -s "$STATE/$1.session" ] || return 1
    for pid in $(pgrep -s "$(cat "$STATE/$1.session")"); do
        grep -Fqsxz "RAYVIDEO_LOCAL=$STATE/$1" "/proc/$pid/environ" && return
    done
    return 1
}

# In a session of its own, so that neither Ctrl-C nor the end of the terminal reaches it, and all of it can be ended.
launch() {
    local name=$1
    shift
    RAYVIDEO_LOCAL=$STATE/$name setsid "$@" > "$STATE/$name.log" 2>&1 < /dev/null &
    echo $! > "$STATE/$name.session"
}

wait_for() {
    local name=$1 url=$2
    for _ in $(seq "$PATIENCE_S"); do
        "$BIN/python" -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=2)" "$url" 2> /dev/null && return
        alive "$name" || break
        sleep 1
    done
    echo "error: $name does not answer on $url; see $STATE/$name.log" >&2
    tail -n 5 "$STATE/$name.log" >&2
    stop >&2
    exit 1
}

start() {
    for name in ray mlflow; do
        if alive "$name"; then
            echo "error: $name runs already; end it first: cluster/local.sh stop" >&2
            exit 1
        fi
    done
    mkdir -p "$STATE" "$STORAGE"
    "$BIN/ray" get-auth-token --generate > /dev/null # ~/.ray/auth_token, unless it is there; Ray's tools read it by themselves
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # seven more processes, for features that are not used here
    # A path may hold what has a meaning in addresses: these are written by what knows how.
    local database artifacts
    database=$("$BIN/python" -m rayvideo.tracking "$STORAGE")
    artifacts=$("$BIN/python" -c "import pathlib, sys; print(pathlib.Path(sys.argv[1]).as_uri())" "$STORAGE/mlartifacts")
    # Jobs write artifacts to the disk themselves: one that is started without this cluster, on the same storage, could not
    # reach what lies behind a server.
    launch mlflow "$BIN/mlflow" server --host 127.0.0.1 --port "$MLFLOW_PORT" --workers 1 \
        --backend-store-uri "$database" --no-serve-artifacts --default-artifact-root "$artifacts"
    # Jobs inherit the variables from Ray, and their `python` is found on its path.
    export PATH=$BIN:$PATH MLFLOW_TRACKING_URI=http://127.0.0.1:$MLFLOW_PORT
    export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
    export RAY_worker_niceness=${RAY_worker_niceness:-0} # 15 otherwise: beside any other work jobs would starve
    export RAY_JOB_STOP_WAIT_TIME_S=60 # to close its MLflow run; Ray kills a job that is stopped after 3 s otherwise
    launch ray "$BIN/ray" start --head --port="$RAY_PORT" --ray-client-server-port=$((RAY_PORT + 1)) \
        --dashboard-host=127.0.0.1 --dashboard-port="$DASHBOARD_PORT" --dashboard-agent-listen-port=0 \
        --temp-dir="$RAY_FOLDER" --num-cpus="$CPUS" --resources='{"trainer": 8, "judge": 8, "data": 8}'
    wait_for mlflow "http://127.0.0.1:$MLFLOW_PORT/health"
    wait_for ray "http://127.0.0.1:$DASHBOARD_PORT/"
    status
    cat <<EOF

Submit jobs from this folder, results to an absolute path:
  export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$DASHBOARD_PORT RAY_AUTH_MODE=token
  ray job submit --working-dir . -- python jobs/finetune.py --recipe RECIPE $(printf %q "storage=$STORAGE")
The dashboard asks for the token that \`ray get-auth-token\` prints.
EOF
}

stop() {
    for name in ray mlflow; do
        if alive "$name"; then
            end "$name" "$(cat "$STATE/$name.session")"
        else
            echo "$name does not run"
        fi
        rm -f "$STATE/$name.session"
    done
}

# SIGTERM to all that was started, SIGKILL to what is left of it after a while.
end() {
    local name=$1 session=$2
    pkill -TERM -s "$session" || true
    for _ in $(seq 20); do
        pgrep -s "$session" > /dev/null || break
        sleep 0.5
    done
    pkill -KILL -s "$session" || true
    echo "$name ended"
}

status() {
    for entry in "ray dashboard http://127.0.0.1:$DASHBOARD_PORT" "mlflow UI http://127.0.0.1:$MLFLOW_PORT"; do
        read -r name what url <<< "$entry"
        if alive "$name"; then
            echo "$name runs, $what: $url"
        else
            echo "$name does not run"
        fi
    done
}

case ${1:-} in
start | stop | status) "$1" ;;
*)
    echo "usage: cluster/local.sh start | stop | status" >&2
    exit 2
    ;;
esac
