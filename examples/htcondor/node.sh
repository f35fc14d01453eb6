#!/bin/sh
# An HTCondor execute node that joins a pool, runs its jobs, and leaves when the pool has none for it or its time is
# up. It is user_data: Vac replaces the patterns between ## and ##. The image brings HTCondor (condor_master on PATH).
#
# user_data_option_condor_host   the pool's central manager, such as cm.example.org
# user_data_option_condor_token  an IDTOKEN that may advertise a startd and a master there; keep it in a file, with
#                                user_data_file_condor_token = condor_token on the site
# user_data_option_condor_config further lines of HTCondor's configuration; best in a file, too
# user_data_option_idle_seconds  the node leaves after so long without a job; default 600
# user_data_option_job_seconds   a job may need so long: none is started with less time left; default 3600

condor_host='##user_data_option_condor_host##'
idle_seconds='##user_data_option_idle_seconds##'
job_seconds='##user_data_option_job_seconds##'
name='##user_data_machine_hostname##'
machinetype='##user_data_machinetype##'
jobfeatures='##user_data_jobfeatures_url##'
joboutputs='##user_data_joboutputs_url##'
heartbeat_file=condor-heartbeat # as heartbeat_file in the pipe
pause_seconds=60                # between heartbeats, and looks at the shutdown time
margin_seconds=300              # for HTCondor to shut down
: "${idle_seconds:=600}" "${job_seconds:=3600}"

# read_key NAME: a Job Feature, of a directory or an HTTP server.
read_key() {
    case $jobfeatures in
        http://*) curl -sf -m 60 "$jobfeatures/$1" ;;
        *) cat "$jobfeatures/$1" ;;
    esac 2>/dev/null
}

# put NAME: standard input becomes a file in the machine's joboutputs.
put() {
    case $joboutputs in
        http://*) cat >"$work/put-$1" && curl -sf -m 60 -H Expect: -T "$work/put-$1" "$joboutputs/$1" >/dev/null ;;
        *) cat >"$joboutputs/$1" ;;
    esac
}

# read_stop_time: sets stop, when HTCondor has to begin to leave, Unix seconds; as it was if nobody says.
read_stop_time() {
    end=$(read_key shutdowntime_job)
    case $end in
        '' | *[!0-9]*) ;;
        *) stop=$((end - margin_seconds)) ;;
    esac
}

# finish CODE TEXT: the shutdown message, HTCondor's logs, then the end of this machine.
finish() {
    for log in MasterLog StartLog; do
        [ ! -s "$work/log/$log" ] || tail -c 100000 "$work/log/$log" | put "$log"
    done
    echo "$*" | put shutdown_message
    case $joboutputs in
        http://*) sync && { poweroff || poweroff -f || shutdown -h now; } ;;
    esac
    exit 0
}

# leave TEXT: jobs are evicted within MachineMaxVacateTime, then this machine ends.
leave() {
    kill "$master" 2>/dev/null
    wait "$master"
    finish 100 "$@"
}

# condor_config: HTCondor's configuration. The package's own says where its programs are. Names are set, since the
# machine's may not resolve, and its uid may have none. Machines share the host's ports: hence no shared port. Without
# SEC_USE_FAMILY_SESSION = False, a central manager on this host would be taken for one of the node's own daemons.
condor_config() {
    processors=$(read_key allocated_cpu)
    memory_bytes=$(read_key max_rss_bytes)
    cat <<END
include ifexist : /etc/condor/condor_config
LOCAL_CONFIG_DIR =
LOCAL_CONFIG_FILE =
CONDOR_HOST = $condor_host
DAEMON_LIST = MASTER STARTD
LOCAL_DIR = $work
LOG = $work/log
EXECUTE = $work/execute
LOCK = $work/log
RUN = $work/log
MASTER_NAME = $name
STARTD_NAME = $name
NETWORK_HOSTNAME = $name

USE_SHARED_PORT = False
CCB_ADDRESS = \$(COLLECTOR_HOST)
SEC_USE_FAMILY_SESSION = False
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, IDTOKENS
SEC_DEFAULT_INTEGRITY = REQUIRED
SEC_CLIENT_AUTHENTICATION_METHODS = FS, IDTOKENS
SEC_TOKEN_DIRECTORY = $work/tokens
SEC_TOKEN_SYSTEM_DIRECTORY = $work/tokens

NUM_CPUS = ${processors:-1}
MEMORY = $((${memory_bytes:-2147483648} / 1048576))
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True

MachineStopTime = $stop
VacMachinetype = "$machinetype"
STARTD_ATTRS = \$(STARTD_ATTRS) MachineStopTime VacMachinetype
RUNBENCHMARKS = False
UPDATE_INTERVAL = 60
START = time() + $job_seconds < MachineStopTime
MachineMaxVacateTime = $((margin_seconds / 2))
STARTD_NOCLAIM_SHUTDOWN = $idle_seconds
END
    cat <<'END'
##user_data_option_condor_config##
END
}

work=${TMPDIR:-/tmp}/condor.$$
mkdir -p "$work/log" "$work/execute" "$work/tokens" || exit 1
chmod 755 "$work" "$work/log"
chmod 1777 "$work/execute"
chmod 700 "$work/tokens"
if [ "$(id -u)" = 0 ] && id condor >/dev/null 2>&1; then # HTCondor's daemons run as condor where they can
    chown condor "$work" "$work/log" "$work/execute"
fi
[ -n "$condor_host" ] || finish 700 user_data_option_condor_host is not set
command -v condor_master >/dev/null || finish 700 The image has no condor_master
(
    umask 077
    cat >"$work/tokens/pool" <<'END'
##user_data_option_condor_token##
END
)
stop=$(($(date +%s) + 86400))
read_stop_time
condor_config >"$work/condor_config"
CONDOR_CONFIG=$work/condor_config
export CONDOR_CONFIG

condor_master -f >"$work/log/output" 2>&1 &
master=$!
trap 'leave Told to end' TERM INT
while kill -0 "$master" 2>/dev/null; do
    date +%s | put "$heartbeat_file"
    known=$stop
    read_stop_time # it may have been lowered
    [ "$(date +%s)" -le "$stop" ] || leave Time is up
    if [ "$stop" != "$known" ]; then
        condor_config >"$work/condor_config"
        kill -HUP "$master" # it reads its configuration again
    fi
    sleep "$pause_seconds" &
    wait $!
done
wait "$master"
status=$?
# A job leaves a log of its starter, one for each slot.
for log in "$work"/log/StarterLog.slot1_*; do
    [ ! -e "$log" ] || finish 200 Success
done
[ "$status" = 0 ] ||
    finish 700 "condor_master ended with status $status: $(cat "$work/log/MasterLog" "$work/log/output" | tail -n 1)"
finish 300 No job for this node
