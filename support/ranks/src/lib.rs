//! Process groups: ranks as threads of one process, with collectives in fixed order
