// A step through all layers, PIECE tokens at a time, by a team of threads. Between two lines there is a barrier; what
// stands on one line a thread does without waiting for others.
//
//   embed
//   of each layer:   norm, query | key | value        rows of the weights are shared out
//                    (norms,) rotate, to the cache    tokens and heads
//                    attend                           tokens and heads, by length
//                    output, added to the residual    rows
//                    norm, SiLU(gate) times up        rows
//                    down, added to the residual      rows
//   norm, head, best of a thread
//   best of all
//
// A thread prepares the input of a linear for itself while tokens are few; else that is shared out too.
#pragma once
#include "attention.h"
#include "driver.h"
#include "team.h"
#include "workspace.h"

namespace {

struct Inputs {
  Panel panels[FORMS];
};

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

  void operator()(const Member &me) const {
    embed(me);
    me.wait();
    for (long i = 0; i < model.layer_count; i++) {
      attention_half(model.layers[i], me);
      mlp_half(model.layers[i], me);
    }
    if (wanted_count) head(me);
  }

 private:
  void embed(const Member &me) const {
    Share mine = me.share(count);
    for (long t = mine.first; t < mine.end; t++)
      memcpy(work.hidden + t * model.hidden, model.embeddings + tokens[t] * model.hidden,
             static_cast<size_t>(model.hidden) * sizeof(uint16_t));
  }

  void attention_half(const Layer &layer, const Member &me) const {
    Inputs x = normed(layer.attention_norm, forms_of({&layer.query, &layer.key, &layer.value}), me);
    project(layer, x, me);
    me.wait();
    rotate_and_keep(layer, me);
    me.wait();
    attend_all(layer, me);
    me.wait();
    add_to_residual(layer.output, work.attended, me);
    me.wait();
  }

  void mlp_half(const Layer &layer, const Member &me) const {
    Inputs x = normed(layer.mlp_norm, forms_of({&layer.gate, &layer.up}), me);
    Share mine = me.share(model.intermediate / BLOCK_ROWS);
    multiply_rows(layer.gate, x, count, mine, Gate{{work.gated, model.intermediate, layer.gate.bias}});
    multiply_rows(layer.up, x, count, mine, MultiplyGate{{work.gated, model.intermediate, layer.up.bias}});
    me.wait();
    add_to_residual(layer.down, work.gated, me);
    me.wait();
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

  // Rows of x in the forms that are asked for; row(token, scratch) gives one.
  template <class Row>
  Inputs prepare(long rows, long columns, unsigned forms, const Member &me, Row row) const {
    const bool own = rows <= OWN_TOKENS;
    Inputs x;
    for (int form = 0; form < FORMS; form++)
      x.panels[form] = own ? work.own_panel(me.thread, form, columns) : work.shared_panel(form, columns);
    Share mine = own ? Share{0, rows} : me.share(rows);
    for (long t = mine.first; t < mine.end; t++) {
      const uint16_t *from = row(t, work.row(me.thread));
      for (int form = 0; form < FORMS; form++)
        if (forms & 1u << form) Isa::fill(kind_of(form), from, columns, x.panels[form], t);
    }
    if (!own) me.wait();
    return x;
  }

  Inputs normed(const uint16_t *norm, unsigned forms, const Member &me) const {
    return prepare(count, model.hidden, forms, me, [&](long t, uint16_t *to) { return normed_row(norm, t, to); });
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
  void project(const Layer &layer, const Inputs &x, const Member &me) const {
    Share mine = me.share(work.projected_stride / BLOCK_ROWS);
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

  void add_to_residual(const Linear &linear, const uint16_t *from, const Member &me) const {
    long columns = linear.weight.columns;
    Inputs x = prepare(count, columns, forms_of({&linear}), me,
                       [&](long t, uint16_t *) { return from + t * columns; });
    Share mine = me.share(model.hidden / BLOCK_ROWS);
    multiply_rows(linear, x, count, mine, AddToResidual{{work.hidden, model.hidden, linear.bias}});
  }

  // ---- attention

  void rotate_and_keep(const Layer &layer, const Member &me) const {
    const long units = model.heads + 2 * model.key_heads;
    Share mine = me.share(count * units);
    for (long unit = mine.first; unit < mine.end; unit++) {
      long t = unit / units, head = unit % units - model.heads;  // negative: a query's
      keep(layer, places[t], head, work.projected + unit * model.head_dim);
    }
  }

  Cache cache_of(const Layer &layer) const {
    return {layer.keys, layer.values, model.key_heads, model.head_dim, model.block_size};
  }

  void keep(const Layer &layer, const Place &place, long head, uint16_t *row) const {
    const Cache cache = cache_of(layer);
    if (head >= model.key_heads) return cache.write_value(place.table, place.position, head - model.key_heads, row);
    const uint16_t *norm = head < 0 ? layer.query_norm : layer.key_norm;
    if (norm) rms_norm(row, norm, model.head_dim, static_cast<float>(model.norm_eps), row);
    long angles = place.position * (model.head_dim / 2);
    rotate(row, model.cosines + angles, model.sines + angles, model.head_dim);
    if (head >= 0) cache.write_key(place.table, place.position, head, row);
  }

  void attend_all(const Layer &layer, const Member &me) const {
    Attending how = {model.heads, layer.window, static_cast<float>(model.attention_scale), 0};
    const Cache cache = cache_of(layer);
    AttentionShare(cache, how, places, count, {work.projected, work.projected_stride},
                   {work.attended, work.attended_stride}, me)();
  }

  // ---- the head

  void head(const Member &me) const {
    Inputs x = prepare(wanted_count, model.hidden, forms_of({&model.head}), me, [&](long i, uint16_t *to) {
      return normed_row(model.norm, wanted[i] - before, to);
    });
    Likeliest *mine = work.best(me.thread);
    for (long i = 0; i < wanted_count; i++) mine[i] = {-INFINITY, model.vocabulary};
    multiply_rows(model.head, x, wanted_count, me.share(model.vocabulary / BLOCK_ROWS),
                  Logits{{logits, model.vocabulary, model.head.bias}, mine});
    me.wait();
    if (me.thread == 0) pick(me.threads);
  }

  void pick(long threads) const {
    for (long i = 0; i < wanted_count; i++) {
      Likeliest most = work.best(0)[i];
      for (long thread = 1; thread < threads; thread++) {
        Likeliest other = work.best(thread)[i];
        most.consider(other.logit, other.token);
      }
      best[i] = isfinite(most.logit) ? most.token : -1;
    }
  }
};

// Pieces follow each other in the order of the tokens: what a token attends to is in its piece or in one before.
template <class Isa>
void run_step(const Model *model, const Step *step) {
  team(step->threads, [&](const Member &me) {
    Place at[PIECE];
    long wanted = 0;
    for (long first = 0; first < step->token_count; first += PIECE) {
      long end = first + PIECE < step->token_count ? first + PIECE : step->token_count, wanted_end = wanted;
      while (wanted_end < step->wanted_count && step->wanted[wanted_end] < end) wanted_end++;
      place_tokens(step->chunks, step->chunk_count, first, end, at);
      Forward<Isa>(*model, *step, at, first, end, wanted, wanted_end)(me);
      me.wait();
      wanted = wanted_end;
    }
  });
}

}  // namespace
