#!/usr/bin/env bash
# MLflow, with PostgreSQL behind it, on a cluster's head. Starts what does not run yet.
#
#   tracking_server.sh ARTIFACTS                      a URI like s3://bucket/folder, or a folder
#   tracking_server.sh ARTIFACTS --until-ray-ends     stops by itself after `ray stop` or `ray down`
#   tracking_server.sh --stop
#
# Nothing of it can be reached from another machine. PostgreSQL listens on a socket, and takes only
# the user whose it is. MLflow listens on 127.0.0.1: the search's driver runs there too, trials never
# speak to it, and people come by `ssh -L 5000:127.0.0.1:5000`. To serve a network, let it listen on
# the head's private address, and add that with its port to the allowed hosts.
#
# Who asks MLflow must know the password. It is made at the first start and kept in
# ~/.mlflow/credentials, where MLflow's clients on this machine look for it.
set -euo pipefail
umask 077

artifacts=$1
script=$(realpath "$0")
port=${MLFLOW_PORT:-5000}
home=$HOME/.kdsearch
database=$home/postgresql
credentials=$HOME/.mlflow/credentials
mkdir -p "$home" "$(dirname "$credentials")"
# Debian and Ubuntu keep PostgreSQL's own programs off the path.
PATH=$PATH:$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)

# One at a time. Servers must not have the lock, so each is started with `9>&-`.
exec 9> "$home/lock"
flock 9

if [ "$artifacts" = --stop ]; then
    server=$(cat "$home/mlflow.pid" 2> /dev/null || true)
    # After a restart of the machine another process may have the number.
    if [ -n "$server" ] && grep -qs mlflow "/proc/$server/cmdline"; then
        kill -- "-$server"
        timeout 20 tail --pid="$server" --follow /dev/null || kill -KILL -- "-$server"
    fi
    rm -f "$home/mlflow.pid"
    if pg_ctl --pgdata="$database" status > /dev/null; then
        pg_ctl --pgdata="$database" --mode=fast --wait stop > /dev/null
    fi
    exit
fi

if [ ! -e "$database/PG_VERSION" ]; then
    initdb --pgdata="$database" --auth=peer --encoding=UTF8 > "$home/initdb.log"
fi
if ! pg_ctl --pgdata="$database" status > /dev/null; then
    pg_ctl --pgdata="$database" --log="$home/postgresql.log" --wait start > /dev/null \
        --options="-c listen_addresses='' -c unix_socket_directories='$database'" 9>&-
fi
for name in mlflow mlflow_users; do
    query="SELECT 1 FROM pg_database WHERE datname = '$name'"
    if [ -z "$(psql --host="$database" --dbname=postgres --tuples-only --command="$query")" ]; then
        createdb --host="$database" "$name"
    fi
done

if [ ! -e "$credentials" ]; then
    printf '[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = %s\n' \
        "$(openssl rand -hex 24)" > "$credentials"
fi
# A password is hashed once a minute instead of at every request, which takes a tenth of a second.
cat > "$home/basic_auth.ini" << END
[mlflow]
default_permission = READ
database_uri = postgresql:///mlflow_users?host=$database
admin_username = admin
admin_password = $(sed -n 's/^mlflow_tracking_password = //p' "$credentials")
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
END

if ! curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; then
    export MLFLOW_AUTH_CONFIG_PATH=$home/basic_auth.ini
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(openssl rand -hex 32)
    export MLFLOW_FLASK_SERVER_SECRET_KEY
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # nothing here uses MLflow's jobs
    setsid mlflow server --app-name basic-auth --host 127.0.0.1 --port "$port" \
        --allowed-hosts "127.0.0.1:$port,localhost:$port" --workers 2 \
        --backend-store-uri "postgresql:///mlflow?host=$database" \
        --artifacts-destination "$artifacts" > "$home/mlflow.log" 2>&1 < /dev/null 9>&- &
    server=$!
    echo "$server" > "$home/mlflow.pid"
    until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
        if ! kill -0 "$server" 2> /dev/null; then
            tail -n 20 "$home/mlflow.log" >&2
            exit 1
        fi
        sleep 1
    done
fi

if [ "${2:-}" = --until-ray-ends ]; then
    ray=$(pgrep --newest --euid "$(id -u)" --exact gcs_server)
    # shellcheck disable=SC2016 # the inner shell's
    setsid bash -c 'tail --pid="$1" --follow /dev/null; bash "$0" --stop' "$script" "$ray" \
        > "$home/stop.log" 2>&1 < /dev/null 9>&- &
fi
