# bash completion for zk0d; written by packaging/manuals.py
_zk0d() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path="" word skip="" words=""
    case $prev in --config|--socket|--state) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;; esac
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [ -n "$skip" ]; then skip=""; continue; fi
        case $word in --config|--socket|--state) skip=1; continue ;; -*) continue ;; esac
        case "${path:+$path }$word" in "?") path="${path:+$path }$word" ;; esac
    done
    case $path in
        "") words="--check --config --foreground --help --socket --state --version" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -o default -F _zk0d zk0d
