# Objects of R's, to a file and back, as data that carries no code: vectors, lists, data frames.
# The file is that of values.py. Everything here is inside one local(): no name stays behind.

refuse <- function(...) stop(structure(
  class = c("refused", "error", "condition"), list(message = paste0(...), call = NULL)))

PIECE <- 2^24 # elements that are written at once: R writes less than 2 GiB in one go
TEXTS <- 2^18 # texts that are joined at once
DEEPEST <- 100 # lists in lists in lists

# ------------------------------------------------------------------------------ to a file

writer <- function(con) {
  begin <- 0
  is_utf8 <- l10n_info()$`UTF-8` || Sys.getlocale("LC_CTYPE") %in% c("C", "POSIX")
  put <- function(values, ...) {
    at <- begin
    for (from in seq(1, max(length(values), 1), by = PIECE)) {
      piece <- values[seq_len(min(PIECE, length(values) - from + 1)) + from - 1]
      writeBin(piece, con, endian = "little", ...)
      begin <<- begin + length(piece) * switch(typeof(piece),
        raw = 1, integer = 4, logical = 4, double = 8, complex = 16)
    }
    list(at, begin - at)
  }
  texts <- function(values, where) {
    values <- as.character(values)
    if (is_utf8) { # enc2utf8 would make "<c3><a9>" of what it does not know
      unmarked <- Encoding(values) == "unknown"
      Encoding(values[unmarked]) <- "UTF-8"
    }
    values <- enc2utf8(values)
    if (!all(validUTF8(values[!is.na(values)]))) refuse(where, " has a text that is not UTF-8.")
    lengths <- nchar(values, type = "bytes")
    lengths[is.na(values)] <- -1L
    there <- values[!is.na(values)]
    at <- begin
    for (from in seq(1, max(length(there), 1), by = TEXTS)) {
      piece <- there[seq_len(min(TEXTS, length(there) - from + 1)) + from - 1]
      put(charToRaw(paste0(piece, collapse = "")))
    }
    list(n = length(values), at = list(at, begin - at), lengths = put(as.integer(lengths)))
  }
  list(put = put, texts = texts)
}

encode <- function(to, x, where, depth = 0) {
  if (depth > DEEPEST) refuse(where, " is nested too deeply: more than ", DEEPEST, " levels.")
  if (is.null(x)) return(list(t = "null"))
  if (isS4(x)) refuse(where, " is an S4 object of class ", class(x)[1], ", which is not carried.")
  if (is.data.frame(x)) return(encode_frame(to, x, where))
  if (typeof(x) == "list" && is.null(attr(x, "class"))) return(encode_list(to, x, where, depth))
  if (is.atomic(x)) return(encode_vector(to, x, where))
  refuse(where, " is of class ", class(x)[1], ", which is not carried.")
}

encode_list <- function(to, x, where, depth) {
  if (!is.null(dim(x))) refuse(where, " is a list with dimensions, which is not carried.")
  names <- names(x)
  extra <- setdiff(names(attributes(x)), "names")
  if (length(extra)) refuse(where, " has the attribute ", extra[1], ", which is not carried.")
  if (!is.null(names) && (anyNA(names) || any(names == "") || anyDuplicated(names)))
    refuse(where, " is a list whose names are not all there, or not unique.")
  values <- lapply(seq_along(x), function(i) encode(to, x[[i]], paste0(where, "[[", i, "]]"), depth + 1))
  list(t = "list", v = values, names = if (is.null(names)) NULL else to$texts(names, where))
}

encode_frame <- function(to, x, where) {
  known <- c("data.frame", "tbl_df", "tbl", "data.table")
  if (length(other <- setdiff(class(x), known)))
    refuse(where, " is a data frame of class ", other[1], ": as.data.frame() makes a plain one.")
  known <- c("names", "row.names", "class", ".internal.selfref", "sorted", "index") # of data.table
  if (length(extra <- setdiff(names(attributes(x)), known)))
    refuse(where, " has the attribute ", extra[1], ", which is not carried.")
  if (anyDuplicated(names(x))) refuse(where, " has columns of the same name.")
  columns <- lapply(seq_along(x), function(i) {
    at <- paste0("column ", names(x)[i], " of ", where)
    if (!is.atomic(x[[i]]) || !is.null(dim(x[[i]]))) refuse(at, " is no plain vector.")
    if (is.raw(x[[i]])) refuse(at, " is raw, which frames elsewhere have not.")
    encode_vector(to, unname(x[[i]]), at)
  })
  rows <- attr(x, "row.names")
  rows <- if (is.character(rows)) to$texts(rows, where) else NULL
  list(t = "frame", n = nrow(x), names = to$texts(names(x), where), v = columns, rows = rows)
}

encode_vector <- function(to, x, where) {
  known <- c("names", "dim", "class", "levels", "tzone", "units", "remoter_naive")
  if (length(extra <- setdiff(names(attributes(x)), known)))
    refuse(where, " has the attribute ", extra[1], ", which is not carried.")
  names <- names(x)
  dim <- dim(x)
  if (!is.null(names) && anyNA(names)) refuse(where, " has names that are missing.")
  if (!is.null(names) && is.raw(x)) refuse(where, " is raw and has names, which is not carried.")
  if (!is.null(dim)) check_array(x, where)
  tree <- list(t = "vector", n = length(x), type = typeof(x))
  if (is.factor(x)) {
    if (!all(class(x) %in% c("factor", "ordered"))) refuse(where, " is of class ", class(x)[1], ".")
    if (anyNA(levels(x))) refuse(where, " has NA among its levels, which is not carried.")
    tree <- c(tree, list(of = "factor", ordered = is.ordered(x), levels = to$texts(levels(x), where)))
  } else if (inherits(x, "Date")) {
    if (any(unclass(x) != floor(unclass(x)), na.rm = TRUE)) refuse(where, " has parts of days.")
    tree$of <- "Date"
    x <- as.double(x)
  } else if (inherits(x, "POSIXct")) {
    zone <- attr(x, "tzone")
    if (is.null(zone) || zone[1] == "") zone <- Sys.timezone()
    tree$of <- "POSIXct"
    tree$zone <- if (is.na(zone[1])) "UTC" else zone[1]
    tree$naive <- isTRUE(attr(x, "remoter_naive"))
    x <- as.double(x)
  } else if (inherits(x, "difftime")) {
    tree$of <- "difftime"
    x <- as.double(x, units = "secs")
  } else if (!is.null(attr(x, "class"))) {
    refuse(where, " is of class ", class(x)[1], ", which is not carried.")
  }
  if (!is.null(tree$of) && tree$of != "factor") tree$type <- "double"
  if (!is.null(dim)) tree$dim <- as.list(dim)
  if (!is.null(names)) tree$names <- to$texts(names, where)
  attributes(x) <- NULL
  if (is.character(x)) c(tree[setdiff(names(tree), "n")], to$texts(x, where))
  else c(tree, list(at = to$put(x)))
}

check_array <- function(x, where) { # those that numpy has no counterpart for
  if (!is.null(names(x))) refuse(where, " has dimensions and names.")
  is_zoned <- inherits(x, "POSIXct") && !isTRUE(attr(x, "remoter_naive"))
  if (is.factor(x) || is.raw(x) || is_zoned)
    refuse(where, " is an array of class ", if (is.raw(x)) "raw" else class(x)[1], ", which is not carried.")
  if (is.null(attr(x, "class")) && typeof(x) %in% c("logical", "integer", "character") && anyNA(x))
    refuse(where, " is an array with NA that is not of doubles, which is not carried.")
}

pack <- function(wish) {
  for (name in wish$names)
    if (!exists(name, envir = globalenv(), inherits = FALSE)) refuse(missing_name(name))
  old <- Sys.umask("077")
  con <- tryCatch(file(wish$path, "wb"), finally = Sys.umask(old))
  on.exit(close(con))
  to <- writer(con)
  trees <- lapply(wish$names, function(name) encode(to, get(name, envir = globalenv()), name))
  text <- charToRaw(as_json(trees))
  to$put(text)
  at <- to$put(charToRaw(sprintf("%020.0f", length(text))))
  objects <- lapply(wish$names, function(name) told(get(name, envir = globalenv())))
  list(size = at[[1]] + at[[2]], objects = objects, pickled = list())
}

as_json <- function(x) jsonlite::toJSON(x, auto_unbox = TRUE, null = "null", digits = NA)

missing_name <- function(name) {
  known <- ls(globalenv())
  far <- utils::adist(name, known, ignore.case = TRUE)
  near <- known[far <= 2 & far < nchar(name)]
  meant <- if (length(near)) paste0(" (did you mean ", paste(near, collapse = " or "), "?)") else ""
  paste0("There is no '", name, "'", meant, ".")
}

told <- function(x) {
  size <- if (is.null(dim(x))) length(x) else paste(dim(x), collapse = " x ")
  paste0(class(x)[1], ", ", size)
}

# ---------------------------------------------------------------------------- from a file

reader <- function(path) {
  con <- file(path, "rb")
  size <- file.size(path)
  go <- function(at) invisible(seek(con, where = at[[1]], origin = "start", rw = "read"))
  numbers <- function(tree) {
    go(tree$at)
    count <- tree$n
    switch(tree$type,
      logical = as.logical(readBin(con, "integer", count, endian = "little")),
      integer = readBin(con, "integer", count, endian = "little"),
      double = readBin(con, "double", count, endian = "little"),
      complex = readBin(con, "complex", count, endian = "little"),
      raw = readBin(con, "raw", count),
      refuse("A vector of an unknown type came."))
  }
  texts <- function(tree) {
    if (tree$n == 0) return(character())
    go(tree$lengths)
    lengths <- readBin(con, "integer", tree$n, endian = "little")
    go(tree$at)
    values <- readChar(con, pmax(lengths, 0L), useBytes = TRUE)
    Encoding(values) <- "UTF-8"
    values[lengths < 0] <- NA_character_
    values
  }
  tree <- function() {
    go(list(size - 20))
    length <- as.numeric(readChar(con, 20, useBytes = TRUE))
    go(list(size - 20 - length))
    text <- readBin(con, "raw", length)
    jsonlite::fromJSON(rawToChar(text), simplifyVector = FALSE)
  }
  list(numbers = numbers, texts = texts, tree = tree, close = function() close(con))
}

decode <- function(from, tree) {
  switch(tree$t,
    null = NULL,
    list = {
      values <- lapply(tree$v, function(each) decode(from, each))
      if (!is.null(tree$names)) names(values) <- from$texts(tree$names)
      values
    },
    frame = {
      columns <- lapply(tree$v, function(each) decode(from, each))
      rows <- if (is.null(tree$rows)) .set_row_names(tree$n) else from$texts(tree$rows)
      structure(columns, names = from$texts(tree$names), row.names = rows, class = "data.frame")
    },
    vector = decode_vector(from, tree),
    refuse("Something of an unknown kind came."))
}

decode_vector <- function(from, tree) {
  x <- if (tree$type == "character") from$texts(tree) else from$numbers(tree)
  of <- if (is.null(tree$of)) "" else tree$of
  if (of == "factor") {
    levels(x) <- from$texts(tree$levels)
    class(x) <- c(if (tree$ordered) "ordered", "factor")
  } else if (of != "") {
    x[is.nan(x)] <- NA_real_
    if (of == "Date") class(x) <- "Date"
    if (of == "difftime") x <- structure(x, class = "difftime", units = "secs")
    if (of == "POSIXct") {
      x <- structure(x, class = c("POSIXct", "POSIXt"),
        tzone = if (is.null(tree$zone)) "UTC" else tree$zone)
      if (isTRUE(tree$naive)) attr(x, "remoter_naive") <- TRUE
    }
  }
  if (!is.null(tree$dim)) dim(x) <- unlist(tree$dim)
  if (!is.null(tree$names)) names(x) <- from$texts(tree$names)
  x
}

unpack <- function(wish) {
  from <- reader(wish$path)
  on.exit(from$close())
  trees <- from$tree()
  if (length(trees) != length(wish$names)) refuse("Not as many objects came as were sent.")
  values <- lapply(trees, function(tree) decode(from, tree))
  objects <- lapply(values, told)
  for (name in wish$names)
    if (exists(name, envir = globalenv(), inherits = FALSE) &&
        (bindingIsLocked(name, globalenv()) || bindingIsActive(name, globalenv())))
      refuse("'", name, "' cannot be given another value: it is locked or active.")
  names(values) <- unlist(wish$names)
  list2env(values, envir = globalenv()) # all at once: an interrupt comes before it or after
  list(objects = objects)
}

# -------------------------------------------------------------------------------- errands

carry_out <- function(wish) {
  words <- tryCatch(
    if (wish$do == "pack") pack(wish) else unpack(wish),
    refused = function(error) list(refused = conditionMessage(error)),
    interrupt = function(error) list(refused = "It was interrupted."),
    error = function(error) list(refused = paste("That cannot be:", conditionMessage(error))))
  writeLines(enc2utf8(as_json(words)), con <- file(wish$answer, "wb"), useBytes = TRUE)
  close(con)
}
