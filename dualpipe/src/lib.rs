//! Pipeline schedules as data, with a validator, a simulator, pictures and an executor
