// A step through all layers, PIECE tokens at a time, by a team of threads. A line is a phase, of units that the threads
// take some at a time; the next begins when all are done (see team.h).
//
//   embed                                            tokens
//   of each layer:   norm, query | key | value       blocks of rows of the weights
//                    (norms,) rotate, to the cache   heads of tokens
//                    attend                          query heads of tokens
//                    output, added to the residual   blocks of rows
//                    norm, SiLU(gate) times up       blocks of rows
//                    down, added to the residual     blocks of rows
//   norm, head, best of a thread                     blocks of rows
//   best of all                                      one
//
// A thread prepares the input of a linear for itself while tokens are few; else that is a phase of its own.
#pragma once
#include "attention.h"
#include "driver.h"
#include "team.h"
#include "workspace.h"

namespace {

// Where a token of the piece stands.
struct Place {
  long position;
  const int *table;
};

struct Inputs {
  Panel panels[FORMS];
};

// The fewest units that are taken at a time: of what is sooner done than taken, more.
constexpr long FEWEST_BLOCKS = 4, FEWEST_HEADS = 4, FEWEST_ROWS = 8;

template <class Isa>
class Forward {
  const Model &model;
  const Workspace work;
  const long *tokens;    // [count]
  const Place *places;   // [count]
  const long count;
  const long *wanted;    // [wanted_count] indices into tokens, each `before` too large
  const long wanted_count, before;
  uint16_t *const logits;
  long *const best;

 public:
  Forward(const Model &of, const Step &step, const Place *at, long first, long end, long wanted_first, long wanted_end)
      : model(of), work(of, step.workspace), tokens(step.tokens + first), places(at), count(end - first),
        wanted(step.wanted + wanted_first), wanted_count(wanted_end - wanted_first), before(first),
        logits(step.logits + wanted_first * of.vocabulary), best(step.best + wanted_first) {}

  void operator()(Member &me) const {
    embed(me);
    for (long i = 0; i < model.layer_count; i++) {
      attention_half(model.layers[i], me);
      mlp_half(model.layers[i], me);
    }
    if (wanted_count) head(me);
  }

 private:
  void embed(Member &me) const {
    me.share(count, FEWEST_ROWS, [&](Share mine) {
      if (mine.first == 0) clear_best(me.threads);
      for (long t = mine.first; t < mine.end; t++)
        memcpy(work.hidden + t * model.hidden, model.embeddings + tokens[t] * model.hidden,
               static_cast<size_t>(model.hidden) * sizeof(uint16_t));
    });
  }

  void attention_half(const Layer &layer, Member &me) const {
    unsigned forms = forms_of({&layer.query, &layer.key, &layer.value});
    auto projections = [&](Share blocks, const Inputs &x) { project(layer, x, blocks); };
    multiply({count, model.hidden, forms}, norm_with(layer.attention_norm), work.projected_stride, projections, me);
    rotate_and_keep(layer, me);
    attend_all(layer, me);
    add_to_residual(layer.output, work.attended, me);
  }

  void mlp_half(const Layer &layer, Member &me) const {
    unsigned forms = forms_of({&layer.gate, &layer.up});
    auto gate_and_up = [&](Share blocks, const Inputs &x) {
      multiply_rows(layer.gate, x, count, blocks, Gate{{work.gated, model.intermediate, layer.gate.bias}});
      multiply_rows(layer.up, x, count, blocks, MultiplyGate{{work.gated, model.intermediate, layer.up.bias}});
    };
    multiply({count, model.hidden, forms}, norm_with(layer.mlp_norm), model.intermediate, gate_and_up, me);
    add_to_residual(layer.down, work.gated, me);
  }

  // ---- linears

  struct Linears {
    const Linear *of[3];
  };

  static unsigned forms_of(Linears linears) {
    unsigned forms = 0;
    for (const Linear *linear : linears.of)
      if (linear) forms |= 1u << form_of(linear->weight.kind);
    return forms;
  }

  // What weights are multiplied by, in the forms that their kinds read.
  struct Multiplicand {
    long tokens, columns;
    unsigned forms;
  };

  // Multiplies `rows` of weights by blocks: work_on(blocks, inputs). row(token, scratch) gives the activations of one.
  template <class Row, class Work>
  void multiply(const Multiplicand &by, Row row, long rows, Work work_on, Member &me) const {
    const bool own = by.tokens <= OWN_TOKENS;
    Inputs x;
    for (int form = 0; form < FORMS; form++)
      x.panels[form] = own ? work.own_panel(me.thread, form, by.columns) : work.shared_panel(form, by.columns);
    auto prepare = [&](Share tokens) { fill(by, tokens, x, row, work.row(me.thread)); };
    if (!own) me.share(by.tokens, 1, prepare);
    auto prepare_own = [&] {
      if (own) prepare({0, by.tokens});
    };
    me.share(rows / BLOCK_ROWS, FEWEST_BLOCKS, prepare_own, [&](Share blocks) { work_on(blocks, x); });
  }

  template <class Row>
  void fill(const Multiplicand &by, Share tokens, const Inputs &x, Row row, uint16_t *scratch) const {
    for (long t = tokens.first; t < tokens.end; t++) {
      const uint16_t *from = row(t, scratch);
      for (int form = 0; form < FORMS; form++)
        if (by.forms & 1u << form) Isa::fill(kind_of(form), from, by.columns, x.panels[form], t);
    }
  }

  auto norm_with(const uint16_t *norm) const {
    return [this, norm](long t, uint16_t *to) { return normed_row(norm, t, to); };
  }

  const uint16_t *normed_row(const uint16_t *norm, long token, uint16_t *to) const {
    rms_norm(work.hidden + token * model.hidden, norm, model.hidden, static_cast<float>(model.norm_eps), to);
    return to;
  }

  template <class Epilogue>
  void multiply_rows(const Linear &linear, const Inputs &x, long rows, Share blocks, const Epilogue &epilogue) const {
    if (blocks.first >= blocks.end) return;
    Isa::with_tile(linear.weight, x.panels[form_of(linear.weight.kind)],
                   [&](const auto &tile) { walk(tile, rows, blocks.first, blocks.end, epilogue); });
  }

  // Three linears whose rows are shared out as if they were one's.
  void project(const Layer &layer, const Inputs &x, Share mine) const {
    long before_rows = 0;
    const Linear *linears[] = {&layer.query, &layer.key, &layer.value};
    for (const Linear *linear : linears) {
      long begin = before_rows / BLOCK_ROWS, blocks = linear->weight.rows / BLOCK_ROWS;
      Share own = {mine.first > begin ? mine.first - begin : 0, mine.end - begin < blocks ? mine.end - begin : blocks};
      Target to = {work.projected + before_rows, work.projected_stride, linear->bias};
      multiply_rows(*linear, x, count, own, Project{to});
      before_rows += linear->weight.rows;
    }
  }

  void add_to_residual(const Linear &linear, const uint16_t *from, Member &me) const {
    const long columns = linear.weight.columns;
    auto row = [&](long t, uint16_t *) { return from + t * columns; };
    auto add = [&](Share blocks, const Inputs &x) {
      multiply_rows(linear, x, count, blocks, AddToResidual{{work.hidden, model.hidden, linear.bias}});
    };
    multiply({count, columns, forms_of({&linear})}, row, model.hidden, add, me);
  }

  // ---- attention

  void rotate_and_keep(const Layer &layer, Member &me) const {
    const long units = model.heads + 2 * model.key_heads;
    me.share(count * units, FEWEST_ROWS, [&](Share mine) {
      for (long unit = mine.first; unit < mine.end; unit++) {
        long t = unit / units, head = unit % units - model.heads;  // negative: a query's
        keep(layer, places[t], head, work.projected + unit * model.head_dim);
      }
    });
  }

  void keep(const Layer &layer, const Place &place, long head, uint16_t *row) const {
    const Cache cache(model, layer);
    if (head >= model.key_heads) return cache.write_value(place.table, place.position, head - model.key_heads, row);
    const uint16_t *norm = head < 0 ? layer.query_norm : layer.key_norm;
    if (norm) rms_norm(row, norm, model.head_dim, static_cast<float>(model.norm_eps), row);
    long angles = place.position * (model.head_dim / 2);
    rotate(row, model.cosines + angles, model.sines + angles, model.head_dim);
    if (head >= 0) cache.write_key(place.table, place.position, head, row);
  }

  // Query heads that share a key head are attended for together where one thread takes them together.
  void attend_all(const Layer &layer, Member &me) const {
    const long sharing = model.heads / model.key_heads;
    me.share(count * model.heads, FEWEST_HEADS, [&](Share mine) {
      for (long unit = mine.first, stop; unit < mine.end; unit = stop) {
        long head = unit % model.heads;
        stop = unit - head % sharing + sharing;
        if (stop > mine.end) stop = mine.end;
        attend_heads(layer, unit / model.heads, head, head + stop - unit);
      }
    });
  }

  void attend_heads(const Layer &layer, long t, long head, long stop) const {
    const long dims = model.head_dim, end = places[t].position + 1;
    long first = layer.window && end > layer.window ? end - layer.window : 0;
    attend(Cache(model, layer), places[t].table, head / (model.heads / model.key_heads), first, end,
           static_cast<float>(model.attention_scale), work.projected + t * work.projected_stride + head * dims,
           stop - head, work.attended + t * work.attended_stride + head * dims);
  }

  // ---- the head

  void head(Member &me) const {
    auto row = [&](long i, uint16_t *to) { return normed_row(model.norm, wanted[i] - before, to); };
    auto logits_of = [&](Share blocks, const Inputs &x) {
      multiply_rows(model.head, x, wanted_count, blocks,
                    Logits{{logits, model.vocabulary, model.head.bias}, work.best(me.thread)});
    };
    multiply({wanted_count, model.hidden, forms_of({&model.head})}, row, model.vocabulary, logits_of, me);
    me.share(1, 1, [&](Share) { pick(me.threads); });
  }

  void clear_best(long threads) const {
    for (long thread = 0; thread < threads; thread++)
      for (long i = 0; i < wanted_count; i++) work.best(thread)[i] = {-INFINITY, model.vocabulary};
  }

  void pick(long threads) const {
    for (long i = 0; i < wanted_count; i++) {
      Likeliest most = work.best(0)[i];
      for (long thread = 1; thread < threads; thread++) {
        Likeliest other = work.best(thread)[i];
        most.consider(other.logit, other.token);
      }
      best[i] = most.token;
    }
  }
};

// The places of the tokens of a step, from a token on.
class Places {
  const Step &step;
  long block_size;

 public:
  Places(const Model &model, const Step &of) : step(of), block_size(model.block_size) {}

  void fill(long first, long end, Place *to) const {
    long at = 0;
    const int *table = step.tables;
    for (long i = 0; i < step.chunk_count; i++) {
      const Chunk &chunk = step.chunks[i];
      long from = first > at ? first : at, until = end < at + chunk.tokens ? end : at + chunk.tokens;
      for (long t = from; t < until; t++) to[t - first] = {chunk.start + t - at, table};
      at += chunk.tokens;
      table += chunk.blocks;
    }
  }
};

// Pieces follow each other in the order of the tokens: what a token attends to is in its piece or in one before.
template <class Isa>
void run_step(const Model *model, const Step *step) {
  Places places(*model, *step);
  team(step->threads, [&](Member &me) {
    Place at[PIECE];
    long wanted = 0;
    for (long first = 0; first < step->token_count; first += PIECE) {
      long end = first + PIECE < step->token_count ? first + PIECE : step->token_count, wanted_end = wanted;
      while (wanted_end < step->wanted_count && step->wanted[wanted_end] < end) wanted_end++;
      places.fill(first, end, at);
      Forward<Isa>(*model, *step, at, first, end, wanted, wanted_end)(me);
      wanted = wanted_end;
    }
  });
}

}  // namespace
